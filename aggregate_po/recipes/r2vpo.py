"""R2VPO: constraint on the variance of the ratio."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import LagrangePenalty, Penalty, RatioVariance


def r2vpo(
    bound: float = 1e-3, step_size: float = 1.0, multiplier: float = 0.04, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Arithmetic mean of token ratios, with a Lagrange multiplier that bounds their variance (eq. 39).

    Gradient weight:
        $r_{i,t} \, (A_i - 2 \lambda (r_{i,t} - 1)) / (N n_i)$

    Args:
        bound: Upper bound on the mean of $(r - 1)^2$; while the mean is below it, the multiplier falls toward zero.
        step_size: Step size of the dual ascent after every optimizer step; 0 keeps the multiplier constant.
        multiplier: Initial value of the multiplier $\lambda$.
        penalties: Further costs subtracted from the objective.

    Reference: arXiv:2601.03320. Its bound, step size and initial multiplier are not known. The multiplier 0.04 is that
    of public re-implementations; the other values are this library's choice.
    """
    variance = LagrangePenalty(RatioVariance(), bound, step_size, multiplier)
    return PolicyObjective(ArithmeticMean(), penalties=[variance, *penalties])
