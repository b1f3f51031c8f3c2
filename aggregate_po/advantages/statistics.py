"""Statistics of groups that neither overflow nor leave a remainder where all values are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregate_po.advantages.rounding import Grouped


def centered(groups: Grouped) -> Grouped:
    """Subtract the mean of each group; exactly 0 for equal rewards, whatever the mean rounds to."""
    all_equal = groups.amax(dim=-1, keepdim=True) == groups.amin(dim=-1, keepdim=True)
    unit = power_of_two(groups)
    return torch.where(all_equal, 0, groups - (groups / unit).mean(dim=-1, keepdim=True) * unit)


def spread(groups: Grouped, ddof: int = 1) -> Tensor:
    """Return the standard deviation of each group, 0 for a group of one; shape `(prompt, 1)`."""
    unit = power_of_two(groups)
    return unit * (groups / unit).std(dim=-1, keepdim=True, correction=ddof if groups.shape[-1] > 1 else 0)


def power_of_two(values: Tensor) -> Tensor:
    """Return a unit for rows whose squares or sums would overflow float64, without rounding; 1 for all others."""
    huge = values.abs().amax(dim=-1, keepdim=True) > 2.0**400
    return torch.where(huge, values.new_tensor(2.0**600), values.new_tensor(1.0))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 for a numerator of 0; equal rewards would give 0/0."""
    return torch.where(numerator == 0, 0, numerator / denominator)
