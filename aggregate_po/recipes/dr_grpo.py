"""Dr. GRPO: GRPO without normalization by length and by standard deviation."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import ConstantLength
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def dr_grpo(
    max_completion_length: float, clip_low: float = 0.2, clip_high: float = 0.2, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Sum of clipped token ratios over a constant (eq. 25); use it with `advantages.GroupCentered`.

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N L)$

    Args:
        max_completion_length: Constant in tokens, the maximum completion length of sampling.
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective.

    Reference: Liu et al., arXiv:2503.20783.
    """
    normalizer = ConstantLength(max_completion_length)
    return PolicyObjective(
        ArithmeticMean(), PessimisticClip(clip_low, clip_high), normalizer=normalizer, penalties=penalties
    )
