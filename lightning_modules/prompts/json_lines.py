"""Prompts from a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.prompts.base import Example, PromptDataset


class JSONLines(PromptDataset):
    """Examples from a JSON Lines file, with one JSON object per line.

    Args:
        path: Path of the JSON Lines file.
        prompt: Name of the field that contains the prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object or has no prompt; the message gives its number.
    """

    def __init__(self, path: str, prompt: str = "prompt") -> None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"`path` is {path!r}, which is not a file; pass a JSON Lines file.")
        self._examples = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                self._examples.append(_parsed(line, f"{path}, line {number}", prompt))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's overloads say nothing here
        return self._examples[index]


def _parsed(line: str, place: str, prompt: str) -> Example:
    try:
        example = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error}); write one JSON object per line.") from None
    if not isinstance(example, dict) or prompt not in example:
        found = sorted(example) if isinstance(example, dict) else type(example).__name__
        raise ValueError(f"{place}: no field `prompt`={prompt!r}, found {found}; name the prompt's field.")
    if not isinstance(example[prompt], str) or not example[prompt].strip():
        raise ValueError(f"{place}: the prompt is {example[prompt]!r}; write a text that is not empty.")
    return {**example, "prompt": example[prompt]}


def examples_of(name: str, dataset: PromptDataset | str) -> Sequence[Example]:
    """Return the examples of the argument `name`: a data set, a list, or the path of a JSON Lines file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no examples.
    """
    if isinstance(dataset, str) and not Path(dataset).is_file():
        raise FileNotFoundError(f"`{name}` is {dataset!r}, which is not a file; pass a JSON Lines file.")
    examples = JSONLines(dataset) if isinstance(dataset, str) else dataset
    if len(examples) == 0:
        raise ValueError(f"`{name}` is {dataset!r}, which has no prompts; pass at least one example.")
    return examples
