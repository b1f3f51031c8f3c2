"""Rows of `objectives.csv`: the measures of an objective over all optimizer steps, and over each update."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.comparison.measures import (
    by_completion,
    effective_fraction,
    effective_fraction_within,
    jaccard,
    share_of_largest,
    share_where,
    shares_by_quantile,
)
from lightning_modules.comparison.tokens import Tokens, Weights

ALL = "all"
Row = dict[str, float | int | str]


def objective_rows(label: str, tokens: Tokens, weights: Weights, recorded: Weights) -> list[Row]:
    """Return a row over all steps, and a row for each number of an update in its rollout.

    Args:
        label: name of the objective.
        tokens: tokens of the recording.
        weights: weights of the objective.
        recorded: weights that the training steps have computed.
    """
    everywhere = torch.ones_like(tokens.update, dtype=torch.bool)
    rows = [_row(label, ALL, everywhere, tokens, weights, recorded)]
    updates = tokens.updates
    if len(updates) > 1:
        rows += [_row(label, update, tokens.update == update, tokens, weights, recorded) for update in updates]
    return rows


def _row(label: str, update: int | str, rows: Tensor, tokens: Tokens, weights: Weights, recorded: Weights) -> Row:
    total, completion, sign = weights.total[rows], tokens.completion[rows], tokens.sign[rows]
    by_log_ratio = shares_by_quantile(total, tokens.log_ratio[rows])
    completions = by_completion(total, completion)
    clipped, exponents = weights.clipped[rows], weights.exponent[rows]
    steps = [step for step, own in tokens.update_of.items() if update in (ALL, own)]
    return {
        "objective": label,
        "update": update,
        "steps": len(steps),
        "completions": len(completions),
        "tokens": len(total),
        "value": _mean(torch.tensor([weights.values[step] for step in steps], dtype=torch.double)),
        "total_weight": float(total.abs().sum()) / len(steps),
        "positive_share": share_where(total, sign > 0),
        "lowest_tenth_share": by_log_ratio[0],
        "highest_tenth_share": by_log_ratio[-1],
        "largest_percent_share": share_of_largest(total),
        "largest_tenth_of_completions_share": share_of_largest(completions, 0.1),
        "completions_effective_fraction": effective_fraction(completions),
        "tokens_effective_fraction": effective_fraction_within(total, completion),
        "concentration_effective_fraction": _mean_of_completions(weights.concentration_share[rows], completion),
        "exponent": _mean_of_completions(exponents, completion),
        "clipped": _mean(clipped.double()),
        "clipped_low": _mean((clipped & (sign < 0)).double()),
        "clipped_high": _mean((clipped & (sign > 0)).double()),
        "overflow": _mean(weights.overflow[rows].double()),
        "largest_difference": float((total - recorded.total[rows]).abs().max()),
    }


def overlap_rows(weights: Mapping[str, Weights]) -> list[Row]:
    """Return the Jaccard index of the clipped tokens of each pair of objectives, over all steps."""
    return [
        {"objective": first, "other": second, "jaccard": jaccard(one.clipped, two.clipped)}
        for first, one in weights.items()
        for second, two in weights.items()
    ]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def _mean_of_completions(values: Tensor, completion: Tensor) -> float:
    """Return the mean over completions of a value that all tokens of a completion have."""
    _, place = completion.unique(return_inverse=True)
    first = torch.full((int(place.max()) + 1,), torch.nan, dtype=torch.double).index_copy_(0, place, values)
    return _mean(first)
