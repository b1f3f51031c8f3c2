"""DAPO: token-level mean with asymmetric clipping."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def dapo(clip_low: float = 0.2, clip_high: float = 0.28, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Clipped token ratios, averaged over all tokens of the optimizer step (eq. 26).

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / T$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive ("clip-higher").
        penalties: Costs subtracted from the objective.

    Reference: Yu et al., arXiv:2503.14476.
    """
    return PolicyObjective(
        ArithmeticMean(), PessimisticClip(clip_low, clip_high), normalizer=TokenMean(), penalties=penalties
    )
