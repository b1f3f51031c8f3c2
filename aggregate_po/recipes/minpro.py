"""MinPRO: the smallest ratio of the past multiplies that of the token."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.prefixes import PrefixMinimum
from aggregate_po.transforms import StraightThrough, TwoSidedClip


def minpro(min_ratio: float = 0.8, max_ratio: float = 1.28, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Log-probabilities weighted by the token's ratio times the smallest before it, clipped and detached (eq. 54).

    The value is the weighted sum of advantages, not the surrogate of the paper; the gradient is the paper's.

    Gradient weight:
        $A_i \, \mathrm{clip}(\tilde r_{i,t}) / T$

    Args:
        min_ratio: Lower bound of the weights, whatever the advantage.
        max_ratio: Upper bound of the weights, whatever the advantage.
        penalties: Costs subtracted from the objective.

    Reference: MinPRO, arXiv:2601.22718. The method is known from secondary sources; the bounds are those of DAPO's
    clip.
    """
    weight = StraightThrough(TwoSidedClip(min_ratio, max_ratio))
    return PolicyObjective(
        ArithmeticMean(), weight, normalizer=TokenMean(), penalties=penalties, prefix=PrefixMinimum()
    )
