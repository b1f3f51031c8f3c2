"""GRPO-Guard: normalized ratios of denoising steps, each step weighted by its length of time."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import ConstantLength
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import Chain, PessimisticClip, RatioNorm


def grpo_guard(
    steps: float, clip_low: float = 2e-6, clip_high: float = 2e-6, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Weighted sum over denoising steps of normalized and clipped ratios (eq. 64).

    The batch needs `divergence` and `scale`, and `mean_weights` of $\delta_{i,t} = 1 / \Delta t$ for the weighting of
    the paper.

    Gradient weight:
        $A_i \, \delta_{i,t} \, s_{i,t} \, e^{u_{i,t}} \, \mathbb 1_{i,t} / (N L)$

    Args:
        steps: Constant that the sum over steps is divided by, the number of denoising steps of a training sample; 10 in
            the official code.
        clip_low: Normalized ratios are clipped at `1 - clip_low` where the advantage is negative. The official code
            uses 2e-6 for rendered text and GenEval, and 4e-6 for PickScore.
        clip_high: Normalized ratios are clipped at `1 + clip_high` where the advantage is positive, likewise.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2510.22319, "ratio normalization" and "gradient reweighting".
    """
    guarded = Chain([RatioNorm(), PessimisticClip(clip_low, clip_high)])
    return PolicyObjective(ArithmeticMean(), guarded, normalizer=ConstantLength(steps), penalties=penalties)
