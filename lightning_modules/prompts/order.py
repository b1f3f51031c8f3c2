"""In which order the prompts of a data set are trained on."""

from __future__ import annotations

import torch

from lightning_modules.seeding import derived_seed


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
