"""Expected share of groups with signal, from the pass rates of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean
from typing import Self


@dataclass(frozen=True)
class PassRates:
    """Distribution of the pass rate over prompts: a Beta distribution with the mean and the variance that were found.

    A group has signal if it has a right completion and a wrong one. Among prompts of pass rate `p`, a share of
    `1 - p^G - (1 - p)^G` of the groups of size `G` has signal. Prompts differ, so the share in a run is the mean over
    this distribution, which is at most the share at the mean pass rate.

    Args:
        mean: Mean pass rate, in [0, 1].
        variance: Variance of the pass rate over prompts, from 0 to `mean * (1 - mean)`.

    Raises:
        ValueError: a number is out of its range.
    """

    mean: float
    variance: float

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise ValueError(f"`mean` is {self.mean}; pass a rate from 0 to 1.")
        if not 0 <= self.variance <= self._largest_variance:
            raise ValueError(f"`variance` is {self.variance}; pass a number from 0 to {self._largest_variance}.")

    @classmethod
    def of(cls, groups: Sequence[Sequence[float]]) -> Self:
        """Estimate the distribution from groups, without the spread that the sampling of completions adds.

        Args:
            groups: reward of each completion of each group, 0 or 1; at least 2 completions in a group.

        Raises:
            ValueError: there is no group, or one has fewer than 2 completions.
        """
        if not groups or min(map(len, groups)) < 2:
            sizes = [len(group) for group in groups]
            raise ValueError(f"`groups` has groups of {sizes} completions; pass one or more, each of 2 or more.")
        mean = fmean(map(fmean, groups))
        # Unbiased for the mean of p^2: of all pairs of a group's completions, those of two right ones.
        square = fmean(_pairs(sum(group)) / _pairs(len(group)) for group in groups)
        return cls(mean, min(max(square - mean**2, 0.0), mean * (1 - mean)))

    @property
    def _largest_variance(self) -> float:
        return self.mean * (1 - self.mean)

    def share_at_mean(self, group_size: int) -> float:
        """Return the share of groups with signal if all prompts had the mean pass rate."""
        return 1 - self.mean**group_size - (1 - self.mean) ** group_size

    def share(self, group_size: int) -> float:
        """Return the expected share of groups with signal over the distribution of pass rates."""
        if self.variance == 0:
            return self.share_at_mean(group_size)
        total = self._largest_variance / self.variance - 1  # alpha + beta
        if total <= 0:  # each prompt is solved always, or never
            return 0.0
        return 1 - sum(_moment(mean * total, total, group_size) for mean in (self.mean, 1 - self.mean))


def _pairs(count: float) -> float:
    return count * (count - 1)


def _moment(alpha: float, total: float, order: int) -> float:
    """Return the mean of `p^order` under Beta(alpha, total - alpha)."""
    return prod((alpha + number) / (total + number) for number in range(order))
