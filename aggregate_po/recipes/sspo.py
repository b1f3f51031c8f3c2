"""SSPO: soft sequence policy optimization, a gate on each token under a geometric mean."""

from collections.abc import Sequence

from aggregate_po.aggregators import GeometricMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import ArctanGate, SigmoidGate


def sspo(tau_positive: float = 1.0, tau_negative: float = 1.05, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Geometric mean of sigmoid-gated ratios (eq. 46); on policy, the value is about twice that of other objectives.

    Gradient weight:
        $A_i \, S_i \, \tau r_{i,t} \, (1 - \sigma(\tau (r_{i,t} - 1))) / (N n_i)$

    Args:
        tau_positive: Sharpness of the gate where the advantage is positive. The paper's values are not known; both
            defaults are those of SAPO, arXiv:2511.20347.
        tau_negative: Sharpness of the gate where the advantage is not positive.
        penalties: Costs subtracted from the objective.

    Reference: Glazyrina et al., arXiv:2602.19327, version 1. Not the sentence-level method of the same name.
    """
    return PolicyObjective(GeometricMean(), SigmoidGate(tau_positive, tau_negative), penalties=penalties)


def sspo_arctan(tau: float = 1.0, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Geometric mean of ratios behind an arctangent of the log ratio (eq. 47), which is 1 on policy.

    Gradient weight:
        $A_i \, S_i / (N n_i (1 + \tau^2 x_{i,t}^2))$

    Args:
        tau: Sharpness of the gate. The paper's value is not known; 1 is this library's choice.
        penalties: Costs subtracted from the objective.

    Reference: Glazyrina et al., arXiv:2602.19327, version 3. The form of the gate is a reconstruction.
    """
    return PolicyObjective(GeometricMean(), ArctanGate(tau), penalties=penalties)
