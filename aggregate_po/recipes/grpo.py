"""Group relative policy optimisation."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def grpo(clip_low: float = 0.2, clip_high: float = 0.2, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    """Arithmetic mean of clipped token ratios, mean over completions (eq. 14).

    Args:
        clip_low: ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: ratios are clipped at `1 + clip_high` where it is positive.
        penalties: the paper has `K3Penalty(0.04)`; most later work none.

    Reference: Shao et al., arXiv:2402.03300.
    """
    return PolicyObjective(ArithmeticMean(), PessimisticClip(clip_low, clip_high), penalties=penalties)


def grpo_wide_clip(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    """GRPO with the bounds that GMPO's clip has as ratios, 0.67 to 1.49.

    Reference: ablation in the code of GMPO, arXiv:2507.20673.
    """
    return grpo(clip_low=0.33, clip_high=0.49, penalties=penalties)
