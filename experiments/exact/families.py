"""Objectives of one argument, where the recipes of the library have none: the width of a clip, or an exponent."""

from __future__ import annotations

import torch

from aggregate_po import (
    ArithmeticMean,
    ESSMatching,
    GeometricMean,
    PerCompletion,
    PessimisticClip,
    PolicyObjective,
    PowerMean,
)

LOG_CLIP = 0.4


def arithmetic(log_clip: float) -> PolicyObjective:
    """Return the arithmetic mean of ratios clipped in log space, a GRPO with symmetric bounds."""
    return PolicyObjective(ArithmeticMean(), PessimisticClip.log(log_clip, log_clip))


def clipped_mean(log_clip: float) -> PolicyObjective:
    """Return the geometric mean with the clip after the mean, a GSPO with symmetric bounds."""
    return PolicyObjective(GeometricMean(), sequence_transform=PessimisticClip.log(log_clip, log_clip))


def power(exponent: float) -> PolicyObjective:
    """Return the power mean without a clip."""
    return PolicyObjective(PowerMean(exponent))


def power_of_clipped(exponent: float) -> PolicyObjective:
    """Return the power mean of ratios clipped in log space as GMPO does."""
    return PolicyObjective(PowerMean(exponent), PessimisticClip.log(LOG_CLIP, LOG_CLIP))


def matched(target: float) -> PolicyObjective:
    """Return the power mean of clipped ratios whose effective sample size is this fraction of the length."""

    def constant(clipped_fraction: PerCompletion, arithmetic_ess: PerCompletion) -> PerCompletion:
        return torch.full_like(arithmetic_ess, target)

    return PolicyObjective(PowerMean(ESSMatching(constant)), PessimisticClip.log(LOG_CLIP, LOG_CLIP))
