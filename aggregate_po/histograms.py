"""Histograms of real numbers of any size, of which quantiles and shares are computed; counts add up over any split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.arguments import require_positive


@dataclass(frozen=True)
class SignedLogBins:
    """Bins that become wider in proportion to the distance from 0, the same on both sides of it.

    A number is known to half the width of its bin: `width / 2` of its distance from 0, and `finest * width / 2` near 0.

    Args:
        finest: distance from 0 beyond which widths grow.
        width: relative width of a bin; the bin of 0 has the width `finest * width`.
        largest: distance from 0 of the last bin, to which larger numbers count too.

    Raises:
        ValueError: an argument is not a positive, finite number.
    """

    finest: float
    width: float
    largest: float

    def __post_init__(self) -> None:
        require_positive(finest=self.finest, width=self.width, largest=self.largest)

    @property
    def per_side(self) -> int:
        """Number of bins on one side of that of 0."""
        return math.ceil(math.log1p(self.largest / self.finest) / math.log1p(self.width))

    def __len__(self) -> int:
        return 2 * self.per_side + 1

    def numbers_of(self, values: Tensor) -> Tensor:
        """Return the number of each value's bin, from 0; NaN counts as 0."""
        known = values.double().nan_to_num(0.0).clamp(-self.largest, self.largest)
        distance = torch.log1p(known.abs() / self.finest) / math.log1p(self.width)
        return (known.sign() * distance.round()).long() + self.per_side

    def quantiles(self, counts: Tensor, fractions: Sequence[float]) -> Tensor:
        """Return the smallest values at or below which fractions of all numbers lie, NaN without numbers.

        Args:
            counts: numbers in each bin; shape `... bin`.
            fractions: fractions, from 0 to 1.

        Returns:
            One value for each fraction; shape `... fraction`.
        """
        cumulative = counts.double().cumsum(dim=-1)
        total = cumulative[..., -1:]
        # A product that is above a whole number by rounding would mean the next number.
        ends = total * torch.tensor(fractions, dtype=torch.double, device=total.device) * (1 - 1e-12)
        places = torch.searchsorted(cumulative, ends) - self.per_side
        distance = self.finest * torch.expm1(places.abs() * math.log1p(self.width))
        return torch.where(total > 0, places.sign() * distance, math.nan)


def top_share(counts: Tensor, sums: Tensor, fraction: float) -> Tensor:
    """Return the share of the sum that the largest numbers hold, NaN if the sum is 0; shape `...`.

    Of the bin in which the fraction ends, a part of the sum counts that is proportional to its count, so the relative
    error is at most the relative width of the bin.

    Args:
        counts: numbers in each bin, from the smallest; shape `... bin`.
        sums: sum of the numbers in each bin, 0 or more; shape `... bin`.
        fraction: number of the largest divided by that of all, from 0 to 1; the last of them may count in part.
    """
    counts, sums = counts.double().flip(-1), sums.double().flip(-1)
    before = counts.cumsum(dim=-1) - counts
    among = fraction * counts.sum(dim=-1, keepdim=True) - before
    part = (among / counts.clamp(min=1)).clamp(0, 1)
    return (part * sums).sum(dim=-1) / sums.sum(dim=-1)
