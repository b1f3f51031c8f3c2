"""Prompts from a JSON Lines file."""

from __future__ import annotations

import json
import re
from typing import Any

from typing_extensions import override

from lightning_modules.prompts.base import Example, StoredPrompts, has_surrogate, require_prompt, short, texts_in
from lightning_modules.prompts.text_files import lines, require_file

_DEEPEST = 100  # levels of nested lists and mappings in a line; a parser that recurses may not survive many more
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JSONLines(StoredPrompts):
    """Examples from a JSON Lines file, with one JSON object per line.

    The file may be compressed by gzip, bzip2 or xz, and may be encoded in UTF-8, or in UTF-16 with a byte-order mark.

    Args:
        path: Path of the JSON Lines file.
        prompt: Name of the field that contains the prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a line is not a JSON object or has no prompt; the message gives its number.
    """

    def __init__(self, path: str, prompt: str = "prompt") -> None:
        require_file("path", path)
        self._path = path
        self._numbers: list[int] = []
        examples: list[Example] = []
        for number, line in lines(path):
            self._numbers.append(number)
            place = f"{path}, line {number}"
            examples.append(example_of(parsed(line, place), place, "lightning_modules.JSONLines", prompt))
        self._examples = examples

    @override
    def location(self, index: int) -> str:
        return f"{self._path}, line {self._numbers[index]}"


def parsed(line: str, location: str) -> Any:
    """Return the value of a line of JSON.

    Args:
        line: the line.
        location: place of the line, named by errors.

    Raises:
        ValueError: the line is not JSON, is nested too deep, or has a number or a text that cannot be kept.
    """
    if line.count("[") + line.count("{") > _DEEPEST and _depth(line) > _DEEPEST:
        raise ValueError(f"{location}: nested deeper than {_DEEPEST} levels; write a flat JSON object.")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{location}: not JSON ({error}); write one JSON object per line.") from None
    except ValueError:
        raise ValueError(
            f"{location}: a number has too many digits for an integer; write it as a text, in quotes."
        ) from None
    if _SURROGATE.search(line) and any(map(has_surrogate, texts_in(row))):
        raise ValueError(f"{location}: a text has half of a surrogate pair, which is no character; remove it.")
    return row


def _depth(line: str) -> int:
    """Return the depth of nested brackets outside of strings."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', line):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def example_of(row: object, location: str, source: str, prompt: str) -> Example:
    """Return a row of a file as an example, with its prompt under "prompt".

    Args:
        row: the row.
        location: place of the row, named by errors.
        source: class that reads the file, named by errors.
        prompt: name of the field that contains the prompt.

    Raises:
        ValueError: the row is not a mapping with a prompt.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{location}: found {short(row)}, which is no JSON object; write one JSON object per line.")
    if prompt not in row:
        raise ValueError(
            f"{location}: no field {prompt!r}, found {short(sorted(row))}; name the prompt's field by the option "
            f"`prompt` of the data set: --data.dataset {source} --data.dataset.path FILE --data.dataset.prompt FIELD, "
            "and the same for --data.validation."
        )
    example = {**row, "prompt": row[prompt]}
    require_prompt(example, location)
    return example
