"""Groups of completions as multisets, with their probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 8192


def number_of_multisets(members: int, size: int) -> int:
    """Return the number of multisets of this size."""
    return math.comb(members + size - 1, size)


def all_multisets(probabilities: Tensor, size: int, at_once: int = AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all multisets in parts, shape `group completion`, with their probabilities, shape `group`.

    Args:
        probabilities: Probability of each member; shape `member`.
        size: Members of a multiset, counted with repetitions.
        at_once: Largest number of multisets of a part.
    """
    count = number_of_multisets(len(probabilities), size)
    every = itertools.chain.from_iterable(itertools.combinations_with_replacement(range(len(probabilities)), size))
    for start in range(0, count, at_once):
        part = min(at_once, count - start)
        rows = torch.from_numpy(np.fromiter(every, dtype=np.int64, count=part * size)).view(part, size)
        # Permutations of a sorted multiset: the factorial of the size over those of its repetitions.
        place = torch.ones(part, dtype=torch.long)
        repeated = torch.zeros(part, dtype=probabilities.dtype)
        for column in range(1, size):
            place = torch.where(rows[:, column] == rows[:, column - 1], place + 1, 1)
            repeated += place.to(repeated).log()
        yield rows, (math.lgamma(size + 1) - repeated + probabilities.log()[rows].sum(dim=-1)).exp()


def sampled_groups(probabilities: Tensor, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield sampled groups in parts, shape `group completion`, with equal weights, shape `group`.

    Args:
        probabilities: Probability of each member; shape `member`.
        size: Members of a group.
        count: Number of groups.
        seed: Seed of the sample.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, AT_ONCE):
        part = min(AT_ONCE, count - start)
        rows = torch.multinomial(probabilities, part * size, replacement=True, generator=generator).view(part, size)
        yield rows, torch.full((part,), 1 / count, dtype=probabilities.dtype)
