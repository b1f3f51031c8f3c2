"""Means over seeds with their bootstrap intervals."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEVEL = 0.95
_ENOUGH_SEEDS = 3  # for an interval
_MOST_SEEDS, _RESAMPLES = 6, 20_000  # seeds of which all resamples are counted, and otherwise the number of random ones


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Args:
        mean: mean.
        low: lower end of the interval, None with fewer than three seeds.
        high: upper end of the interval, None with fewer than three seeds.
        seeds: number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the mean of one value per seed, with the bootstrap interval of resamples of the seeds.

        It is that of all resamples with up to six seeds, and of random ones with more.
        """
        mean = sum(values) / len(values)
        if len(values) < _ENOUGH_SEEDS:
            return cls(mean, None, None, len(values))
        means = sorted(sum(sample) / len(sample) for sample in _resamples(values))
        tail = round((1 - LEVEL) / 2 * (len(means) - 1))
        return cls(mean, means[tail], means[-1 - tail], len(values))


def _resamples(values: Sequence[float]) -> Iterator[Sequence[float]]:
    count = len(values)
    if count <= _MOST_SEEDS:
        yield from itertools.product(values, repeat=count)
    else:
        rng = random.Random(0)
        yield from (rng.choices(values, k=count) for _ in range(_RESAMPLES))


def estimate_cell(found: Estimate | None) -> str:
    """Return an estimate as the cell of a table, empty without one."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" ({found.low:.3g} to {found.high:.3g})"
    return f"{found.mean:.3g}{interval}"
