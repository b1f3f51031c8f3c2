"""TIC-GRPO: one ratio for the whole completion."""

from collections.abc import Sequence

from aggregate_po.aggregators import Product
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def tic_grpo(clip_high: float = 0.2, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Ratio of the whole completion, clipped from above only (eq. 38).

    Use it with `advantages.LengthCorrected(GroupNormalized(ddof=0))`.

    Gradient weight:
        $A_i \, w_i \, \mathbb 1_i / N$

    Args:
        clip_high: The completion's ratio is clipped at `1 + clip_high` where the advantage is positive. The paper's
            value is not known; 0.2 is this library's choice.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2508.02833.
    """
    clip = PessimisticClip(clip_low=1.0, clip_high=clip_high)
    return PolicyObjective(Product(), sequence_transform=clip, penalties=penalties)
