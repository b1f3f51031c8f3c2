"""KPO: log ratios filtered from noise along the completion."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.prefixes import PrefixKalmanFilter
from aggregate_po.transforms import PessimisticClip


def kpo(
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    process_variance: float = 1e-6,
    prior_variance: float = 0.0,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Arithmetic mean of clipped ratios whose logarithms a causal Kalman filter has smoothed (eq. 55).

    Gradient weight:
        $A_i \, \tilde r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: Filtered ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Filtered ratios are clipped at `1 + clip_high` where the advantage is positive.
        process_variance: Variance of the drift of the log ratio from token to token, in units of the variance of the
            noise; `inf` gives GRPO.
        prior_variance: Variance of the log ratio before the first token, in the same units; `inf` and no
            drift give the geometric mean of the prefix.
        penalties: Costs subtracted from the objective.

    Reference: KPO, arXiv:2602.10609, with the numbers of its code. KRPO filters rewards.
    """
    prefix = PrefixKalmanFilter(process_variance, prior_variance)
    return PolicyObjective(ArithmeticMean(), PessimisticClip(clip_low, clip_high), penalties=penalties, prefix=prefix)
