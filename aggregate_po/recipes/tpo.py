"""TPO: cross-entropy to a target distribution over the completions of a group."""

from collections.abc import Sequence

from aggregate_po.aggregators import Product
from aggregate_po.group_objectives import TargetCrossEntropy
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty


def tpo(temperature: float = 1.0, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Likelihood of a target distribution over the group: the behavior policy's, tilted by the advantages (eq. 58).

    The advantages of the paper are z-scores by the standard deviation of the population,
    `GroupNormalized(ddof=0, delta=0)`. A group of equal rewards has no gradient at first, and in later updates of a
    rollout one toward the behavior policy.

    Gradient weight:
        $\hat A_i / N, \quad \hat A_i = G \, (q_i - p_i)$

    Args:
        temperature: Temperature $\eta$ of the tilt.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2604.06159.
    """
    return PolicyObjective(Product(), penalties=penalties, group_objective=TargetCrossEntropy(temperature))
