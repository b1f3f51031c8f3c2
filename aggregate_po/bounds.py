"""Bounds that keep the result of an objective finite for every finite input.

An objective bounds the log ratios on entry, and the log value of a completion before `exp`. Aggregators and transforms
are exact far beyond these bounds.
"""

import torch

from aggregate_po.shapes import PerToken

MAX_LOG_RATIO = 20.0


def working_precision(log_probs: PerToken) -> PerToken:
    """Return log-probabilities in at least float32; a ratio of half-precision numbers has no accurate digits left."""
    return log_probs if log_probs.dtype == torch.float64 else log_probs.float()


def log_ratio_of(log_probs: PerToken, other: PerToken, mask: PerToken) -> PerToken:
    """Return the difference of two log-probabilities, 0 on padding and not yet bounded; shape `batch time`."""
    return torch.where(mask, working_precision(log_probs) - working_precision(other), 0)


def bounded(log_ratio: PerToken) -> PerToken:
    """Clamp log ratios to +-20; the gradient outside is zero."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
