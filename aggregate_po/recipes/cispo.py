"""CISPO: clipped importance weights on the log-probability."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import StraightThrough, TwoSidedClip


def cispo(max_ratio: float = 5.0, min_ratio: float = 0.0, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Log-probabilities weighted by clipped, detached ratios, so that no token loses its gradient (eq. 35).

    The value is the weighted sum of advantages, not the surrogate of the paper; the gradient is the paper's.

    Gradient weight:
        $A_i \, \mathrm{clip}(r_{i,t}) / T$

    Args:
        max_ratio: Upper bound of the weights, whatever the advantage. The paper tunes this value without reporting it;
            ScaleRL used 5.
        min_ratio: Lower bound of the weights; the paper has none. Some implementations clip to `1 - epsilon`.
        penalties: Costs subtracted from the objective.

    Reference: MiniMax-M1, arXiv:2506.13585.
    """
    weight = StraightThrough(TwoSidedClip(min_ratio, max_ratio))
    return PolicyObjective(ArithmeticMean(), weight, normalizer=TokenMean(), penalties=penalties)
