"""REAL: the advantages as labels of a classifier."""

from collections.abc import Sequence

from aggregate_po.aggregators import GeometricMean
from aggregate_po.group_objectives import LabelLogistic
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty


def real(temperature: float = 0.5, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Log-likelihood of a classifier of completions by their mean log ratio $\ell_i$ (eq. 57).

    A completion with a positive advantage has the label 1, and any other the label 0, so with rewards of 0 and 1 any
    estimator that subtracts the mean of the group makes the rewards the labels. A group of one label has no gradient.

    Gradient weight:
        $\hat A_i / (N n_i), \; \hat A_i = \pm \frac G \tau e^{\mp \ell_i/\tau} / (1 + \sum_\pm e^{\mp \ell_j/\tau})$

    Args:
        temperature: Temperature $\tau$.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2602.05630; labels and default as in the code of ms-swift.
    """
    return PolicyObjective(GeometricMean(), penalties=penalties, group_objective=LabelLogistic(temperature))
