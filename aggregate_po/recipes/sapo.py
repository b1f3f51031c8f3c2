"""SAPO: soft gates in place of a clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import SigmoidGate


def sapo(tau_positive: float = 1.0, tau_negative: float = 1.05, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of sigmoid-gated ratios (eq. 36); on policy, the value is about twice that of other objectives.

    Gradient weight:
        $A_i \, r_{i,t} \, \mathrm{sech}^2(\tau (r_{i,t} - 1) / 2) / (N n_i)$

    Args:
        tau_positive: Sharpness of the gate where the advantage is positive.
        tau_negative: Sharpness of the gate where the advantage is not positive.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2511.20347.
    """
    return PolicyObjective(ArithmeticMean(), SigmoidGate(tau_positive, tau_negative), penalties=penalties)
