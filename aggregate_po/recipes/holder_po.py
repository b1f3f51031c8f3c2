"""HölderPO: power mean with a scheduled exponent."""

from collections.abc import Sequence

from aggregate_po.aggregators import PowerMean
from aggregate_po.exponents import ExponentRule, LinearExponent
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def holder_po(
    exponent: float | ExponentRule = LinearExponent(2.0, -2.0),
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Power mean whose exponent falls over the training, clipped after the mean (eq. 32).

    Gradient weight:
        $A_i \, \rho_i^{1-p} \, r_{i,t}^{\,p} \, \mathbb 1_i / (N n_i)$

    Args:
        exponent: Exponent of the mean, or an `ExponentRule` that chooses it. In the paper it falls linearly from 2 to
            -2 on mathematics and from 1 to -1 on ALFWorld; in the authors' code over 500 steps.
        clip_low: The completion's ratio is clipped at `1 - clip_low` where the advantage is negative.
        clip_high: The completion's ratio is clipped at `1 + clip_high` where the advantage is positive. The paper
            does not state its bounds; 0.2, on both sides of the ratio, is that of the authors' code.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2605.12058.
    """
    clip = PessimisticClip(clip_low, clip_high)
    return PolicyObjective(PowerMean(exponent), sequence_transform=clip, penalties=penalties)
