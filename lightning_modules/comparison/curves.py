"""Gradient weights against log ratio and position, as the rows of the plots' files."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_modules.comparison.measures import share_where, shares_by_quantile
from lightning_modules.comparison.rows import Row
from lightning_modules.comparison.tokens import Tokens, Weights

_INNER = 0.995  # fraction of the tokens inside the axis of log ratios
_BINS, _FEWEST = 31, 5  # bins of log ratios, and the tokens below which one is left out
_POSITIONS = 10
_BAND = (0.05, 0.95)


def rows_by_log_ratio(label: str, tokens: Tokens, weights: Weights) -> list[Row]:
    """Return the weight relative to that on policy, in bins of the log ratio, by sign of the advantage.

    Args:
        label: name of the objective.
        tokens: tokens of the recording.
        weights: weights of the objective.
    """
    size = tokens.log_ratio.abs()
    half = float(size.kthvalue(math.ceil(_INNER * len(size))).values) if len(size) else 0.0
    edges = torch.linspace(-half, half, _BINS + 1, dtype=torch.double)
    known = weights.relative.isfinite() & (size <= half)
    rows: list[Row] = []
    for sign, name in ((1, "positive"), (-1, "negative")):
        chosen = known & (tokens.sign == sign)
        place = torch.bucketize(tokens.log_ratio[chosen], edges[1:-1])
        for number in range(_BINS if half else 0):
            inside = weights.relative[chosen][place == number]
            if len(inside) >= _FEWEST:
                low, high = _quantiles(inside)
                center = float(edges[number] + edges[number + 1]) / 2
                about: Row = {"objective": label, "advantage": name, "log_ratio": center, "tokens": len(inside)}
                rows.append({**about, "mean": float(inside.mean()), "quantile_05": low, "quantile_95": high})
    return rows


def _quantiles(values: Tensor) -> list[float]:
    """Return the ends of the band; `torch.quantile` refuses more than 16 million values."""
    ordered = values.sort().values
    places = [fraction * (len(values) - 1) for fraction in _BAND]
    return [float(torch.lerp(ordered[int(at)], ordered[math.ceil(at)], at - int(at))) for at in places]


def rows_by_position(label: str, tokens: Tokens, weights: Weights) -> list[Row]:
    """Return the share of the gradient and the fraction of clipped tokens, in tenths of the completions.

    The share is divided by that of the tokens, so it is 1 where the gradient is even.

    Args:
        label: name of the objective.
        tokens: tokens of the recording.
        weights: weights of the objective.
    """
    return [
        {
            "objective": label,
            "position": (number + 0.5) / _POSITIONS,
            "tokens": int(inside.sum()),
            "relative_share": share_where(weights.total, inside) * len(tokens) / int(inside.sum()),
            "clipped": float(weights.clipped[inside].double().mean()),
        }
        for number, inside in _tenths(tokens)
        if inside.any()
    ]


def rows_by_quantile(label: str, tokens: Tokens, weights: Weights) -> list[Row]:
    """Return the share of the gradient in each tenth of the log ratios, from the lowest.

    Args:
        label: name of the objective.
        tokens: tokens of the recording.
        weights: weights of the objective.
    """
    shares = shares_by_quantile(weights.total, tokens.log_ratio)
    return [{"objective": label, "tenth": number, "share": share} for number, share in enumerate(shares, start=1)]


def _tenths(tokens: Tokens) -> Iterator[tuple[int, Tensor]]:
    """Yield each tenth of the completions, and which tokens are in it."""
    place = (tokens.position - 1) * _POSITIONS // tokens.length
    for number in range(_POSITIONS):
        yield number, place == number
