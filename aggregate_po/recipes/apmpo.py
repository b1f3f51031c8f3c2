"""APMPO: power mean whose exponent and clip depend on the rewards."""

from collections.abc import Sequence

from aggregate_po.aggregators import PowerMean
from aggregate_po.exponents import RewardExponent
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import AdaptiveClip


def apmpo(
    gamma: float = 0.8,
    clip_low: float = 0.2,
    clip_high_min: float = 0.2,
    clip_high_max: float = 0.4,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Power mean of clipped token ratios; exponent and upper bound depend on the rewards of the rollout (eq. 33).

    Gradient weight:
        $A_i \, M_p^{1-p} \, e^{p u_{i,t}} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        gamma: Rate $\gamma$ of the exponent $e^{-\gamma \mu_R}$; the mean reward $\mu_R$ is expected in [0, 1].
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high_min: Smallest distance of the upper bound from 1, for mean reward 0.
        clip_high_max: Largest distance of the upper bound from 1, for high and steady rewards.
        penalties: Costs subtracted from the objective; the paper uses `K3Penalty(0.001)`.

    Reference: arXiv:2605.04066.
    """
    clip = AdaptiveClip(clip_low, clip_high_min, clip_high_max)
    return PolicyObjective(PowerMean(RewardExponent(gamma)), clip, penalties=penalties)
