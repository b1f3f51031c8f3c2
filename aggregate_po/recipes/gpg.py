"""GPG: plain policy gradient, without ratios."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import StraightThrough, TwoSidedClip


def gpg(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Log-probabilities weighted by advantages (eq. 44): a weight clipped to [1, 1].

    Gradient weight:
        $A_i / T$

    Args:
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2504.02546.
    """
    weight = StraightThrough(TwoSidedClip(1.0, 1.0))
    return PolicyObjective(ArithmeticMean(), weight, normalizer=TokenMean(), penalties=penalties)
