"""PMPO: power-mean policy optimization."""

from collections.abc import Sequence

from aggregate_po.aggregators import PowerMean
from aggregate_po.exponents import ESSMatching
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def pmpo(
    log_clip: float = 0.4, rule: ESSMatching = ESSMatching(), penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Power mean whose effective sample size is matched to a target from the clipped fraction (eq. 31).

    Gradient weight:
        $A_i \, M_{p_i}^{1-p_i} \, e^{p_i u_{i,t}} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        log_clip: Bound on the absolute log ratio of each token. The paper's value is not known; the default is GMPO's.
        rule: Rule for the exponent of each completion. The map from clipped fraction to target is a reconstruction;
            see `exponents.interpolated_target`.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2601.22521. Not the preference-based method of the same name.
    """
    return PolicyObjective(PowerMean(rule), PessimisticClip.log(log_clip, log_clip), penalties=penalties)
