"""GSPO: group sequence policy optimization."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean, GeometricMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import Chain, CompletionRatio, PessimisticClip


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Geometric mean of the token ratios, clipped after the mean (eq. 27).

    Gradient weight:
        $A_i \, s_i \, \mathbb 1_i / (N n_i)$

    Args:
        clip_low: The completion's ratio is clipped at `1 - clip_low` where the advantage is negative.
        clip_high: The completion's ratio is clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective.

    Reference: Zheng et al., arXiv:2507.18071.
    """
    return PolicyObjective(
        GeometricMean(), sequence_transform=PessimisticClip(clip_low, clip_high), penalties=penalties
    )


def gspo_token(clip_low: float = 3e-4, clip_high: float = 4e-4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Token form of GSPO, for per-token advantages (eq. 28); with one advantage per completion it equals GSPO.

    Gradient weight:
        $A_{i,t} \, s_i \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: The completion's ratio is clipped at `1 - clip_low` for tokens with negative advantage.
        clip_high: The completion's ratio is clipped at `1 + clip_high` for tokens with positive advantage.
        penalties: Costs subtracted from the objective.

    Reference: Zheng et al., arXiv:2507.18071.
    """
    clip = Chain([CompletionRatio(GeometricMean()), PessimisticClip(clip_low, clip_high)])
    return PolicyObjective(ArithmeticMean(), clip, penalties=penalties)
