"""Reductions over the response tokens of each completion.

These functions are the only place where a mask or a weight is applied to values. Padding is replaced before any
arithmetic, so NaN or inf on padding affects neither the result nor its gradient. An empty completion gives 0.

Every reduction takes the weights of the mean, `weights`, non-negative and finite; None counts every token once. A token
of weight 0 is padding, and a token of weight 2 counts as two. Pass `tokens.mean_weights`.
"""

from typing import TypeVar, cast

import torch
from torch import Tensor

Count = TypeVar("Count", bound=float | Tensor)


def masked_sum(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum over the response tokens, each times its weight; shapes `batch time` to `batch`."""
    if weights is None:
        return torch.where(mask, values, 0).sum(dim=-1)
    counted = _counted(mask, weights)
    return (torch.where(counted, weights, 0).to(values.dtype) * torch.where(counted, values, 0)).sum(dim=-1)


def masked_length(mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the number of response tokens, with weights the sum of the weights; shapes `batch time` to `batch`."""
    return mask.sum(dim=-1) if weights is None else torch.where(mask, weights, 0).sum(dim=-1)


def masked_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the response tokens; shapes `batch time` to `batch`."""
    lengths = masked_length(mask, weights)
    return masked_sum(values, mask, weights) / divisor(lengths if weights is None else lengths.to(values.dtype))


def masked_logsumexp(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the stable `log sum exp` over the response tokens, with weights `log sum w exp`; `batch time` to `batch`.

    An empty completion gives 0, not -inf: its weight is zero, and -inf times zero is NaN.
    """
    values, mask = _log_weighted(values, mask, weights)
    return _logsumexp(values, mask)


def masked_softmax(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the softmax over the response tokens, 0 on padding; shapes `batch time` to `batch time`.

    With weights the share of a token is in proportion to `w exp`.
    """
    values, mask = _log_weighted(values, mask, weights)
    normalizer = _logsumexp(values, mask).unsqueeze(-1)
    return torch.where(mask, torch.exp(torch.where(mask, values, 0.0) - normalizer), 0.0)


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value over the response tokens; shapes `batch time`, `batch time` to `batch`."""
    if mask.shape[-1] == 0:
        return values.new_zeros(mask.shape[:-1])
    return torch.where(mask.any(dim=-1), torch.where(mask, values, -torch.inf).amax(dim=-1), 0.0)


def divisor(count: Count) -> Count:
    """Return a count or a sum of weights as a divisor, with 0 replaced by 1 where there is no token."""
    if isinstance(count, Tensor):
        return cast(Count, torch.where(count > 0, count, 1))
    return count if count > 0 else cast(Count, 1)


def _counted(mask: Tensor, weights: Tensor) -> Tensor:
    return mask & (weights > 0)


def _log_weighted(values: Tensor, mask: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the values plus the logarithms of their weights, and the mask of the tokens that count."""
    if weights is None:
        return values, mask
    counted = _counted(mask, weights)
    return values + torch.where(counted, weights, 1).to(values.dtype).log(), counted


def _logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    empty = ~mask.any(dim=-1)
    filled = torch.where(mask, values, -torch.inf)
    # Both branches of the outer `where` stay finite, because the gradient of the one not taken is still computed.
    filled = torch.where(empty.unsqueeze(-1), 0.0, filled)
    return torch.where(empty, 0.0, torch.logsumexp(filled, dim=-1))
