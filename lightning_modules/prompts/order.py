"""Order of the prompts of a data set in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightning_modules.seeding import derived_seed


@dataclass(frozen=True)
class Candidate:
    """A prompt that may be sampled, before it is tokenized.

    Args:
        index: index of the example in the data set.
        position: position in the order, which no other candidate of the run has.
        weight: importance weight of the prompt's group, by which its advantages are multiplied.
    """

    index: int
    position: int
    weight: float = 1.0


CandidateStage = Callable[[int], Sequence[Candidate]]  # returns about this number of the next candidates of all ranks


class PromptOrder:
    """Endless order over examples: each pass over the data set is a new permutation, determined by the seed.

    The order is a function of the position, so a checkpoint saves only the position.

    Args:
        size: number of examples.
        seed: seed of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._pass = -1
        self._permutation: list[int] = []

    def slice(self, start: int, stop: int) -> list[int]:
        """Return the indices of the examples at positions `start` (included) to `stop` (excluded)."""
        return [self._at(position) for position in range(start, stop)]

    def _at(self, position: int) -> int:
        number, offset = divmod(position, self._size)
        if number != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, number))
            self._pass, self._permutation = number, torch.randperm(self._size, generator=generator).tolist()
        return self._permutation[offset]
