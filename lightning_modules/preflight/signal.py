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
    def of(cls, right: Sequence[int], group_size: int) -> Self:
        """Estimate the distribution from groups, without the spread that the sampling of completions adds.

        Args:
            right: number of right completions of each group.
            group_size: number of completions of each group, at least 2.

        Raises:
            ValueError: there is no group, or `group_size` is less than 2.
        """
        if not right or group_size < 2:
            raise ValueError(f"`right` has {len(right)} groups of {group_size}; pass one or more, of 2 or more.")
        mean = fmean(right) / group_size
        # Unbiased for the mean of p^2: of all pairs of a group's completions, those of two right ones.
        square = fmean(count * (count - 1) for count in right) / (group_size * (group_size - 1))
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


def _moment(alpha: float, total: float, order: int) -> float:
    """Return the mean of `p^order` under Beta(alpha, total - alpha)."""
    return prod((alpha + number) / (total + number) for number in range(order))
