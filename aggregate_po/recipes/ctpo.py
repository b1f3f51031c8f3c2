"""CTPO: cumulative token policy optimization, the ratio of each token's prefix."""

import math
from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.arguments import require_positive
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.prefixes import PrefixAggregate, PrefixGeometricMean, PrefixProduct
from aggregate_po.transforms import Chain, NegativeCap, PessimisticClip, RatioTransform, ScaledClip


def ctpo(
    log_clip_low: float = 0.025,
    log_clip_high: float = 0.05,
    log_cap: float | None = 0.05,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Product of the ratios up to each token, clipped to a band that widens with the root of its position (eq. 52).

    Gradient weight:
        $A_i \, \tilde r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        log_clip_low: At position $t$ the summed log ratio is clipped at $-\sqrt t$ times this where the advantage is
            negative.
        log_clip_high: At position $t$ the summed log ratio is clipped at $\sqrt t$ times this where the advantage is
            positive.
        log_cap: At position $t$ the summed log ratio is clipped at $\sqrt t$ times this where the advantage is
            negative, the dual clip; None leaves it out.
        penalties: Costs subtracted from the objective.

    Reference: CTPO, arXiv:2605.07331, with the numbers of its code.
    """
    return _on_prefixes(PrefixProduct(), 0.5, log_clip_low, log_clip_high, log_cap, penalties)


def ctpo_geometric(
    log_clip_low: float = 0.025,
    log_clip_high: float = 0.05,
    log_cap: float | None = 0.05,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""CTPO with the geometric mean of each prefix; the band narrows with the root of the position (eq. 53).

    A token is clipped exactly where it is in `ctpo`, because both conditions are on the sum of the log ratios.

    Gradient weight:
        $A_i \, \tilde r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        log_clip_low: At position $t$ the mean log ratio is clipped at $-1 / \sqrt t$ times this where the advantage is
            negative.
        log_clip_high: At position $t$ the mean log ratio is clipped at $1 / \sqrt t$ times this where the advantage is
            positive.
        log_cap: At position $t$ the mean log ratio is clipped at $1 / \sqrt t$ times this where the advantage is
            negative, the dual clip; None leaves it out.
        penalties: Costs subtracted from the objective.

    Reference: the second mode of CTPO, arXiv:2605.07331, with the numbers of its code.
    """
    return _on_prefixes(PrefixGeometricMean(), -0.5, log_clip_low, log_clip_high, log_cap, penalties)


def _on_prefixes(
    prefix: PrefixAggregate,
    exponent: float,
    log_clip_low: float,
    log_clip_high: float,
    log_cap: float | None,
    penalties: Sequence[Penalty],
) -> PolicyObjective:
    clip: RatioTransform = ScaledClip(PessimisticClip.log(log_clip_low, log_clip_high), exponent)
    if log_cap is not None:
        require_positive(log_cap=log_cap)
        clip = Chain([clip, ScaledClip(NegativeCap(math.exp(log_cap)), exponent)])
    return PolicyObjective(ArithmeticMean(), clip, penalties=penalties, prefix=prefix)
