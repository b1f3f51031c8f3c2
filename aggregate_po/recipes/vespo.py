"""VESPO: a kernel of the completion's ratio as weight."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean, Product
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import Chain, CompletionRatio, GammaKernel, StraightThrough


def vespo(
    shape_positive: float = 2.0,
    rate_positive: float = 3.0,
    shape_negative: float = 3.0,
    rate_negative: float = 2.0,
    penalties: Sequence[Penalty] = (),
) -> PolicyObjective:
    r"""Log-probabilities weighted by a gamma kernel of the whole completion's ratio, detached (eq. 37).

    Gradient weight:
        $A_i \, w_i^k e^{\lambda (1 - w_i)} / T$

    Args:
        shape_positive: Exponent $k$ of the kernel $w^k e^{\lambda (1 - w)}$ where the advantage is not negative.
        rate_positive: Rate $\lambda$ of the kernel where the advantage is not negative.
        shape_negative: Exponent $k$ of the kernel where the advantage is negative.
        rate_negative: Rate $\lambda$ of the kernel where the advantage is negative.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2602.10693; defaults and token average as in its code.
    """
    kernel = GammaKernel(shape_positive, rate_positive, shape_negative, rate_negative)
    weight = Chain([CompletionRatio(Product()), StraightThrough(kernel)])
    return PolicyObjective(ArithmeticMean(), weight, normalizer=TokenMean(), penalties=penalties)
