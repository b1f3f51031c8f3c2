"""Order of the prompts of a data set in training."""

from __future__ import annotations

import torch

from lightning_modules.seeding import derived_seed


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
