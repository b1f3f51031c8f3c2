"""Values of a group that are equal up to the rounding errors of a sum."""

from __future__ import annotations

from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

Grouped = Annotated[Tensor, "prompt group"]

# Relative rounding errors of sums of up to thousands of terms; real rewards are further apart.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def equal_up_to_rounding(groups: Grouped, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return True for groups whose values are equal, or differ by the rounding errors of a sum; shape `prompt`.

    The difference may be $10^{-12}$ of the largest magnitude in float64, and $10^{-6}$ of it in float32. In a narrower
    precision, where a rounding error is as large as a real difference, the values must be equal.

    Args:
        groups: values of each group, shape `prompt group`.
        dtype: precision in which the values were computed.

    Example:
        >>> equal_up_to_rounding(torch.tensor([[0.1 + 0.2, 0.3], [1.0, 1.0 + 1e-9]], dtype=torch.float64))
        tensor([ True, False])
    """
    difference = groups.amax(dim=-1).double() - groups.amin(dim=-1).double()
    return difference <= _ROUNDING.get(dtype, 0.0) * groups.abs().amax(dim=-1).double()


def without_rounding(groups: Grouped, dtype: torch.dtype) -> Grouped:
    """Return the values with those of a group replaced by the first one where they differ by rounding only."""
    equal = rearrange(equal_up_to_rounding(groups, dtype), "prompt -> prompt 1")
    return torch.where(equal, groups[:, :1], groups)
