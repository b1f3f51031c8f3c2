"""Where prompts come from, and in which order."""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Example = Mapping[str, Any]


class PromptDataset(Sequence[Example], ABC):
    """Examples by index: mappings with a text under "prompt", and whatever the reward reads."""


class JSONLines(PromptDataset):
    """Examples from a file with one JSON object per line.

    Args:
        path: the file.
        prompt: name of the field that holds the prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object or has no prompt; the message gives its number.
    """

    def __init__(self, path: str, prompt: str = "prompt") -> None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"`path` is {path!r}, which is not a file; pass a file of JSON lines.")
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


class PromptOrder:
    """An endless order over examples: each pass is a new permutation, fixed by the seed.

    The order is a function of the position, so the position is all there is to save.

    Args:
        size: number of examples.
        seed: of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._pass = -1
        self._permutation: list[int] = []

    def slice(self, start: int, stop: int) -> list[int]:
        """Indices of the examples from position `start` to before `stop`."""
        return [self._at(position) for position in range(start, stop)]

    def _at(self, position: int) -> int:
        number, offset = divmod(position, self._size)
        if number != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, number))
            self._pass, self._permutation = number, torch.randperm(self._size, generator=generator).tolist()
        return self._permutation[offset]


def derived_seed(*parts: int) -> int:
    """A seed that differs whenever a part differs, the same on every machine."""
    seed = 0
    for part in parts:
        # One round of splitmix64 for each part.
        seed = (seed + part + 0x9E3779B97F4A7C15) % 2**64
        seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % 2**64
        seed ^= seed >> 31
    return seed % 2**63
