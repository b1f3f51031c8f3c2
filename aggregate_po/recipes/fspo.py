"""FSPO: fair sequence policy optimization, a clip of the whole completion that widens with its length."""

from collections.abc import Sequence

from aggregate_po.aggregators import Product
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip, ScaledClip


def fspo(log_clip: float, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Ratio of the whole completion, clipped in log space to a band as wide as the root of the length (eq. 51).

    Gradient weight:
        $A_i \, w_i \, \mathbb 1_i / N$

    Args:
        log_clip: Width $c$ of the band: the summed log ratio of $n$ tokens is clipped at $-c \sqrt n$ where the
            advantage is negative, and at $c \sqrt n$ where it is positive. The paper's value is not known, so there is
            no default. If log ratios are independent, their standard deviation clips about one completion in six.
        penalties: Costs subtracted from the objective.

    Reference: Mao et al., arXiv:2509.09177. Its first version also corrected the band for drift, which is not included.
    """
    clip = ScaledClip(PessimisticClip.log(log_clip, log_clip), exponent=0.5)
    return PolicyObjective(Product(), sequence_transform=clip, penalties=penalties)
