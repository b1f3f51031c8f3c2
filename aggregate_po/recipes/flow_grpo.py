"""Flow-GRPO: GRPO over the denoising steps of a flow-matching model."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def flow_grpo(clip_low: float = 1e-4, clip_high: float = 1e-4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of the clipped ratios of denoising steps (eq. 63).

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative. The default is that of the
            official code.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive. The default is that of the
            official code.
        penalties: Costs subtracted from the objective; the official code uses `GaussianKL(0.04)` for rendered text.

    Reference: arXiv:2505.05470. A log-probability is averaged over latent dimensions, which the clip range presumes.
    """
    return PolicyObjective(ArithmeticMean(), PessimisticClip(clip_low, clip_high), penalties=penalties)
