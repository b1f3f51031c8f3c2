"""LUSPO: sequence ratios weighted by length."""

from collections.abc import Sequence

from aggregate_po.aggregators import GeometricMean
from aggregate_po.normalizers import LengthWeighted
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def luspo(clip_low: float = 2e-3, clip_high: float = 2.5e-3, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""GSPO with every completion weighted by its length, so that all tokens have equal weight (eq. 34).

    Gradient weight:
        $A_i \, s_i \, \mathbb 1_i / N$

    Args:
        clip_low: The completion's ratio is clipped at `1 - clip_low` where the advantage is negative.
        clip_high: The completion's ratio is clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2602.05261.
    """
    return PolicyObjective(
        GeometricMean(),
        sequence_transform=PessimisticClip(clip_low, clip_high),
        normalizer=LengthWeighted(),
        penalties=penalties,
    )
