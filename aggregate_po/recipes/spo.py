"""SPO: simple policy optimization, a quadratic penalty in place of a clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.arguments import require_positive
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import AdvantageWeighted, Penalty, RatioVariance


def spo(radius: float = 0.2, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Mean of the token ratios less a quadratic penalty with the weight of the advantage (eq. 48).

    Gradient weight:
        $r_{i,t} \, (A_i - \lvert A_i \rvert \, (r_{i,t} - 1) / \varepsilon) / T$

    Args:
        radius: Distance $\varepsilon$ of the ratio from 1 at which the weight of a token is zero, where it moves with
            its advantage; beyond, the token is pushed back. The default is the range of PPO's clip. The comparison for
            language models in arXiv:2606.09821 has 12.5.
        penalties: Further costs subtracted from the objective.

    Raises:
        ValueError: the radius is not positive.

    Reference: Xie et al., arXiv:2401.16025. Not the single-stream or other methods of the same name.
    """
    require_positive(radius=radius)
    penalty = AdvantageWeighted(RatioVariance(1 / (2 * radius)))
    return PolicyObjective(ArithmeticMean(), normalizer=TokenMean(), penalties=[penalty, *penalties])
