"""Measures of who gets the gradient, each from the weights of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def share_where(weights: Tensor, chosen: Tensor) -> float:
    r"""Return the part of $\sum_t |w_t|$ on some tokens; NaN if it is 0.

    Args:
        weights: gradient weights; shape `token`.
        chosen: True on these tokens; shape `token`.
    """
    size = weights.abs()
    return _over(float(size[chosen].sum()), float(size.sum()))


def share_of_largest(weights: Tensor, fraction: float = 0.01) -> float:
    r"""Return the part of $\sum_t |w_t|$ that the largest weights hold; NaN if it is 0.

    Args:
        weights: gradient weights; shape `token`.
        fraction: fraction of the tokens, rounded up to whole tokens.
    """
    size = weights.abs().sort(descending=True).values
    return _over(float(size[: math.ceil(fraction * len(size))].sum()), float(size.sum()))


def shares_by_quantile(weights: Tensor, values: Tensor, parts: int = 10) -> list[float]:
    r"""Return the part of $\sum_t |w_t|$ in each quantile of a value, from the lowest; NaN if it is 0.

    Tokens of equal value share their weight evenly among the quantiles that they are in, so that the result does not
    depend on their order.

    Args:
        weights: gradient weights; shape `token`.
        values: value of each token, such as its log ratio; shape `token`.
        parts: number of quantiles, each with the same number of tokens.

    Example:
        >>> shares_by_quantile(torch.tensor([1.0, 3.0]), torch.tensor([0.2, -0.2]), parts=2)
        [0.75, 0.25]
    """
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.double).index_add_(0, place, weights.abs().double())
    # The cumulative weight as a function of the cumulative number of tokens, linear where values are equal.
    tokens, cumulative = (torch.cat([torch.zeros(1).double(), part.double().cumsum(0)]) for part in (counts, sums))
    edges = torch.linspace(0, len(values), parts + 1, dtype=torch.double)
    after = torch.searchsorted(tokens, edges).clamp(min=1)
    slope = (edges - tokens[after - 1]) / (tokens[after] - tokens[after - 1])
    at_edges = torch.lerp(cumulative[after - 1], cumulative[after], slope)
    return [_over(part, float(cumulative[-1])) for part in at_edges.diff().tolist()]


def by_completion(weights: Tensor, completion: Tensor) -> Tensor:
    r"""Return $\sum_t |w_t|$ of each completion; shape `completion`.

    Args:
        weights: gradient weights; shape `token`.
        completion: number of each token's completion; shape `token`.
    """
    numbers, place = completion.unique(return_inverse=True)
    return torch.zeros(len(numbers), dtype=torch.double).index_add_(0, place, weights.abs().double())


def effective_fraction(weights: Tensor) -> float:
    r"""Return $(\sum_i |w_i|)^2 / (n \sum_i w_i^2)$, between $1 / n$ and 1; NaN if all are 0.

    Args:
        weights: weights of tokens or of completions; shape `n`.
    """
    size = weights.abs().double()
    return _over(float(size.sum() ** 2), float(len(size) * (size**2).sum()))


def effective_fraction_within(weights: Tensor, completion: Tensor) -> float:
    """Return the mean of `effective_fraction` over the completions with a gradient; NaN if there are none.

    Args:
        weights: gradient weights; shape `token`.
        completion: number of each token's completion; shape `token`.
    """
    _, place, counts = completion.unique(return_inverse=True, return_counts=True)
    size = weights.abs().double()
    sums, squares = (
        torch.zeros(len(counts), dtype=torch.double).index_add_(0, place, part) for part in (size, size**2)
    )
    some = squares > 0
    fractions = sums[some] ** 2 / (counts[some] * squares[some])
    return float(fractions.mean()) if len(fractions) else math.nan


def jaccard(first: Tensor, second: Tensor) -> float:
    """Return the size of the intersection of two sets over that of their union; NaN if both are empty.

    Args:
        first: True on the tokens of a set; shape `token`.
        second: True on the tokens of another set; shape `token`.

    Example:
        >>> jaccard(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
        0.3333333333333333
    """
    return _over(float((first & second).sum()), float((first | second).sum()))


def _over(part: float, total: float) -> float:
    return part / total if total else math.nan
