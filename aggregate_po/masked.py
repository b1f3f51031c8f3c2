"""Reductions over the response tokens of each completion.

These functions are the only place where a mask is applied to values. Padding is replaced before any arithmetic, so NaN
or inf on padding affects neither the result nor its gradient. An empty completion gives 0.
"""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over the response tokens; shapes `batch time`, `batch time` to `batch`."""
    return torch.where(mask, values, 0).sum(dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the response tokens; shapes `batch time`, `batch time` to `batch`."""
    return masked_sum(values, mask) / mask.sum(dim=-1).clamp(min=1)


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Return the stable `log sum exp` over the response tokens; shapes `batch time`, `batch time` to `batch`.

    An empty completion gives 0, not -inf: its weight is zero, and -inf times zero is NaN.
    """
    empty = ~mask.any(dim=-1)
    filled = torch.where(mask, values, -torch.inf)
    # Both branches of the outer `where` stay finite, because the gradient of the one not taken is still computed.
    filled = torch.where(empty.unsqueeze(-1), 0.0, filled)
    return torch.where(empty, 0.0, torch.logsumexp(filled, dim=-1))


def masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the response tokens, 0 on padding; shapes `batch time`, `batch time` to `batch time`."""
    normalizer = masked_logsumexp(values, mask).unsqueeze(-1)
    return torch.where(mask, torch.exp(torch.where(mask, values, 0.0) - normalizer), 0.0)


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value over the response tokens; shapes `batch time`, `batch time` to `batch`."""
    if mask.shape[-1] == 0:
        return values.new_zeros(mask.shape[:-1])
    return torch.where(mask.any(dim=-1), torch.where(mask, values, -torch.inf).amax(dim=-1), 0.0)
