"""Divergence PPO: divergence masks in place of a clip of the ratio."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import (
    BernoulliKLMask,
    Chain,
    RatioMask,
    StraightThrough,
    TotalVariationMask,
    TwoSidedClip,
)


def dppo_tv(
    max_increase: float = 0.2, max_decrease: float = 0.2, max_ratio: float = 20.0, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Truncated ratios as weights; masks tokens whose probability moved too far, by total variation (eq. 42).

    Gradient weight:
        $A_i \, \min(r_{i,t}, c) \, \mathbb 1_{i,t} / T$

    Args:
        max_increase: Largest increase of the probability of an unmasked token with positive advantage.
        max_decrease: Largest decrease of the probability of an unmasked token with negative advantage.
        max_ratio: Upper bound of the weights.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2602.04879. The bounds are this library's choice. Not the pruning method of the same name.
    """
    return _masked(TotalVariationMask(max_increase, max_decrease), max_ratio, penalties)


def dppo_kl(
    max_divergence_low: float = 0.2,
    max_divergence_high: float = 0.2,
    max_ratio: float = 20.0,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Truncated ratios as weights; masks tokens by the KL divergence of the sampled token against the rest (eq. 42).

    Gradient weight:
        $A_i \, \min(r_{i,t}, c) \, \mathbb 1_{i,t} / T$

    Args:
        max_divergence_low: Largest divergence of an unmasked token with negative advantage and lower probability; nats.
        max_divergence_high: Largest divergence of an unmasked token with positive advantage and higher probability;
            nats.
        max_ratio: Upper bound of the weights.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2602.04879. The bounds are this library's choice. Not the pruning method of the same name.
    """
    return _masked(BernoulliKLMask(max_divergence_low, max_divergence_high), max_ratio, penalties)


def _masked(mask: RatioMask, max_ratio: float, penalties: Sequence[Penalty]) -> PolicyObjective:
    weight = Chain([StraightThrough(TwoSidedClip(0.0, max_ratio)), mask])
    return PolicyObjective(ArithmeticMean(), weight, normalizer=TokenMean(), penalties=penalties)
