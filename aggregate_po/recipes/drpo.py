"""DRPO: divergence-regularized policy optimization."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.arguments import require_positive
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import AdvantageWeighted, Penalty, ProbabilityWeighted, RatioVariance


def drpo(radius: float = 12.5, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Mean of the token ratios less SPO's penalty times the probability of the token (eq. 49).

    Gradient weight:
        $r_{i,t} \, (A_i - \lvert A_i \rvert \, q_{i,t} \, (r_{i,t} - 1) / \varepsilon) / T$

    Args:
        radius: Change $\varepsilon$ of the *probability* at which the weight of a token is zero, where it moves with
            its advantage. No probability changes by the 12.5 of the paper, so there the penalty only damps.
        penalties: Further costs subtracted from the objective.

    Raises:
        ValueError: the radius is not positive.

    Reference: Yao et al., arXiv:2606.09821. Not the method of decoupled rewards with the same name.
    """
    require_positive(radius=radius)
    penalty = AdvantageWeighted(ProbabilityWeighted(RatioVariance(1 / (2 * radius))))
    return PolicyObjective(ArithmeticMean(), normalizer=TokenMean(), penalties=[penalty, *penalties])
