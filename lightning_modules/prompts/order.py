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
        index: index of the example in the data set, the first one if it is repeated there.
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
        indices: indices of the examples, or the number of examples if all are in the order.
        seed: seed of the permutations.
    """

    def __init__(self, indices: int | Sequence[int], seed: int) -> None:
        self._indices = range(indices) if isinstance(indices, int) else indices
        self._seed = seed
        self._pass = -1
        self._permutation: list[int] = []

    def __len__(self) -> int:
        """Return the number of examples in a pass."""
        return len(self._indices)

    def slice(self, start: int, stop: int) -> list[int]:
        """Return the indices of the examples at positions `start` (included) to `stop` (excluded)."""
        return [self._at(position) for position in range(start, stop)]

    def _at(self, position: int) -> int:
        number, offset = divmod(position, len(self))
        if number != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, number))
            self._pass, self._permutation = number, torch.randperm(len(self), generator=generator).tolist()
        return self._indices[self._permutation[offset]]
