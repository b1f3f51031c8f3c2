"""FIPO: advantages weighted by what the policy has made of the tokens that follow."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.suffixes import DiscountedFuture
from aggregate_po.transforms import Chain, NegativeCap, PessimisticClip


def fipo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    half_life: float = 32.0,
    max_weight: float = 1.2,
    max_ratio: float = 10.0,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""DAPO with the advantage of each token times the discounted ratio of its future (eq. 60).

    Gradient weight:
        $A_i \, f_{i,t} \, r_{i,t} \, \mathbb 1_{i,t} / T$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive.
        half_life: Number of tokens after which a later log ratio counts half.
        max_weight: Upper bound of the factor of the advantage; the lower bound is 1.
        max_ratio: Upper bound of the ratio where the advantage is negative. Tokens with a larger ratio are also left
            out of all factors, their own included.
        penalties: Costs subtracted from the objective.

    Reference: FIPO, arXiv:2603.19835, with the numbers of its implementation in ms-swift.
    """
    clip = Chain([PessimisticClip(clip_low, clip_high), NegativeCap(max_ratio)])
    weight = DiscountedFuture(half_life, max_weight=max_weight, max_ratio=max_ratio)
    return PolicyObjective(ArithmeticMean(), clip, normalizer=TokenMean(), penalties=penalties, suffix_weight=weight)
