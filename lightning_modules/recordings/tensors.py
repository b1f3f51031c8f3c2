"""Nested states of tensors, numbers and texts as safetensors files, without pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_HEADER = "state"  # name of the part of a file's metadata that holds everything but the tensors


def plain_state(value: Any) -> Any:
    """Return a dataclass, a mapping or a sequence as nested dictionaries of tensors, numbers and texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_state(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain_state(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(number): plain_state(item) for number, item in enumerate(value)}
    return value


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write nested dictionaries of tensors, numbers and texts to a safetensors file.

    A tensor is stored under the names of its dictionaries, joined by dots. Numbers, texts and None are in the metadata
    of the file as JSON, in which a float keeps all its digits.

    Raises:
        TypeError: a value is of another type.
    """
    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, "", tensors)
    save_file(tensors, path, metadata={_HEADER: json.dumps(rest)})


def load_state(path: Path) -> dict[str, Any]:
    """Return the nested dictionaries that `save_state` has written, with tensors on the CPU.

    Raises:
        ValueError: the file is missing, damaged, or was not written by `save_state`.
    """
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})[_HEADER])
            names = file.keys()  # the file itself is no iterable
            for name in names:
                _insert(state, name.split("."), file.get_tensor(name))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable file of a recording ({error}); record again.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a file of a recording; record again.")
    return state


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a state without its tensors, which are collected by name."""
    if isinstance(value, Mapping):
        rest = {}
        for key, item in value.items():
            path = f"{name}.{key}" if name else key
            if isinstance(item, Tensor):
                tensors[path] = item.detach().cpu().clone().contiguous()  # a view would be stored with its base
            else:
                rest[key] = _without_tensors(item, path, tensors)
        return rest
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"`{name}` is {value!r}, which a recording cannot hold; make it a tensor, a number or a text.")


def _insert(state: dict[str, Any], path: list[str], tensor: Tensor) -> None:
    for name in path[:-1]:
        state = state.setdefault(name, {})
    state[path[-1]] = tensor
