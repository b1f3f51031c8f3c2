"""Configuration of a run as plain values, for its checkpoints, and the differences between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

_HASHED_BYTES = 64 * 2**20  # larger files of a model folder, such as weights, are known by their size
_LISTED = 100  # longer lists are known by their checksum
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Change:
    """A difference between two configurations.

    Args:
        name: dotted name of the value, such as `model.learning_rate`.
        old: value in the first configuration; None if it is missing.
        new: value in the second configuration; None if it is missing.
    """

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"`{self.name}` was {_shown(self.old)} and is {_shown(self.new)}"


def described(value: Any, depth: int = 5) -> Any:
    """Return a value as plain numbers, texts, lists and mappings, in the form of the command line.

    A function or class becomes its import path, any other object its `class_path` with its fields or public attributes
    as `init_args`. A list of examples becomes its checksum.

    Args:
        value: value to describe.
        depth: number of levels of objects whose attributes are described.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): described(item, depth) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        examples = len(value) > _LISTED or any(isinstance(item, Mapping) for item in value)
        return _digest(value) if examples else [described(item, depth) for item in value]
    if isinstance(value, partial):
        return {"class_path": described(value.func), "init_args": described(value.keywords, depth)}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (Path, Enum)):
        return str(value)
    attributes = _attributes(value) if depth else {}
    content = {"examples": _digest(value)} if isinstance(value, Sequence) else {}
    return {
        "class_path": described(type(value)),
        "init_args": {name: described(item, depth - 1) for name, item in attributes.items()},
        **content,
    }


def described_arguments(local_names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the described arguments of a constructor, from its `locals()`."""
    return {name: described(value) for name, value in local_names.items() if name not in ("self", "__class__")}


def _attributes(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    return {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}


def _digest(examples: Sequence[Any]) -> dict[str, Any]:
    """Return the number of examples, and a checksum of a thousand of them."""
    spaced = [examples[number] for number in range(0, len(examples), max(len(examples) // 1000, 1))]
    text = json.dumps(spaced, sort_keys=True, default=repr)
    return {"number": len(examples), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def with_contents(value: Any, whole: bool = False) -> Any:
    """Return plain values in which each path of a file or a folder comes with the checksums of what it holds.

    Args:
        value: plain values.
        whole: whether large files of weights are read, too; otherwise they are known by their size.
    """
    if isinstance(value, Mapping):
        return {name: with_contents(item, whole) for name, item in value.items()}
    if isinstance(value, list):
        return [with_contents(item, whole) for item in value]
    if not isinstance(value, str) or not value or not Path(value).exists():
        return value
    path = Path(value)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {"path": value, "contents": {file.name: _content(file, whole) for file in files if file.is_file()}}


def _content(file: Path, whole: bool) -> str:
    size = file.stat().st_size
    if not whole and size > _HASHED_BYTES and file.suffix in (".safetensors", ".bin", ".gguf"):
        return f"{size} bytes"
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def changes(old: Any, new: Any, name: str, is_free: Callable[[str], bool] = lambda name: False) -> Iterator[Change]:
    """Yield the differences between two plain values, each by the name of the smallest part that differs.

    Args:
        old: first value.
        new: second value.
        name: name of the values.
        is_free: tells whether a part of this name may differ.
    """
    if is_free(name):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if old.keys() == new.keys() == {"path", "contents"}:
            yield from _changes_of_contents(old, new, name)
            return
        # Another class has other arguments.
        if old.get("class_path") == new.get("class_path"):
            for part in {**old, **new}:
                label = name if part == "init_args" else f"{name}.{part}"
                yield from changes(old.get(part), new.get(part), label, is_free)
            return
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from changes(first, second, f"{name}.{number}", is_free)
        return
    if old != new and repr(old) != repr(new):  # NaN differs from itself
        yield Change(name, old, new)


def _changes_of_contents(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> Iterator[Change]:
    """Yield the differences between two files or folders; a file may have moved."""
    first, second = old["contents"], new["contents"]
    if len(first) == len(second) == 1 and [*first.values()] == [*second.values()]:
        return
    for file in {**first, **second}:
        if first.get(file) != second.get(file):
            both = f"{old['path']}: {first.get(file)}", f"{new['path']}: {second.get(file)}"
            yield Change(f"{name}, {file}", *both)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() == {"path", "contents"}:
        return repr(value["path"])
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = ", ".join(f"{name}={_shown(item)}" for name, item in (value.get("init_args") or {}).items())
        text = f"{value['class_path']}({arguments})"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
