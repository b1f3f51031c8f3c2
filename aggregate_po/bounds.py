"""The bounds that keep every finite input finite.

Aggregators and transforms are exact far beyond these; only log ratios that enter an objective are bounded, and the log
of a completion's value before it is exponentiated.
"""

import torch

from aggregate_po.shapes import PerToken

MAX_LOG_RATIO = 20.0


def working_precision(log_probs: PerToken) -> PerToken:
    """Log-probabilities in at least float32: a ratio of half-precision numbers has lost its digits."""
    return log_probs if log_probs.dtype == torch.float64 else log_probs.float()


def log_ratio_of(log_probs: PerToken, other: PerToken, mask: PerToken) -> PerToken:
    """Difference of two log-probabilities, 0 on padding, before it is bounded; shape `batch time`."""
    return torch.where(mask, working_precision(log_probs) - working_precision(other), 0)


def bounded(log_ratio: PerToken) -> PerToken:
    """Log ratios within +-20; the gradient beyond is zero."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
