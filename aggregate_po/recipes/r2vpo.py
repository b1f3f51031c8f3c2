"""The variance of the ratio as a constraint."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import LagrangePenalty, Penalty, RatioVariance


def r2vpo(
    bound: float = 1e-3, step_size: float = 1.0, multiplier: float = 0.04, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Arithmetic mean of token ratios whose variance is held below a bound by a multiplier (eq. 39).

    Gradient weight:
        $r_{i,t} \, (A_i - 2 \lambda (r_{i,t} - 1)) / (N n_i)$

    Args:
        bound: largest mean of $(r - 1)^2$ that is free of charge; above what the ratios do anyway, the multiplier falls
            to zero.
        step_size: of the ascent of the multiplier after every optimiser step; 0 keeps it as it is.
        multiplier: $\lambda$ at the start.
        penalties: further costs.

    Reference: arXiv:2601.03320. Its bound, step size and first multiplier could not be read; 0.04 is that of public
    re-implementations, the others are this library's.
    """
    variance = LagrangePenalty(RatioVariance(), bound, step_size, multiplier)
    return PolicyObjective(ArithmeticMean(), penalties=[variance, *penalties])
