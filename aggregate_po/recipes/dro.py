"""DRO: policy gradient with a quadratic cost of the log ratio."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import K2Penalty, Penalty
from aggregate_po.transforms import StraightThrough, TwoSidedClip


def dro(coefficient: float = 1.0, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Log-probabilities weighted by advantages, minus a quadratic cost of the log ratio (eq. 43).

    Gradient weight:
        $(A_i - \beta x_{i,t}) / T$

    Args:
        coefficient: Coefficient $\beta$ of the cost $\beta x^2 / 2$ of a token's log ratio $x$ to the behavior policy.
        penalties: Further costs subtracted from the objective.

    Reference: the policy term of arXiv:2405.19107, as in released code, with group advantages in place of a value
    function.
    """
    proximity = K2Penalty(coefficient, anchor="behavior")
    weight = StraightThrough(TwoSidedClip(1.0, 1.0))
    return PolicyObjective(ArithmeticMean(), weight, normalizer=TokenMean(), penalties=[proximity, *penalties])
