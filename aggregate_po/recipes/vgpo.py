"""VGPO: the objective of Flow-GRPO with an advantage for each denoising step."""

from collections.abc import Sequence

from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.recipes.flow_grpo import flow_grpo


def vgpo(clip_low: float = 1e-4, clip_high: float = 1e-4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of clipped ratios, each with the advantage of its step (eq. 66); use it with `StepValues`.

    Gradient weight:
        $A_{i,t} \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative. The default is that of the
            official code of Flow-GRPO.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive, likewise.
        penalties: Costs subtracted from the objective; the paper trains with a divergence from the reference, and loses
            image quality without.

    Reference: arXiv:2512.12387. What is new in the method is the estimator, `advantages.StepValues`.
    """
    return flow_grpo(clip_low, clip_high, penalties)
