"""The arithmetic mean without any clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty


def espo(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of unclipped token ratios (eq. 40), to be trained with early stopping of the inner epochs.

    The other half of the method is `lightning_modules.RatioDeviationStop`.

    Gradient weight:
        $A_i \, r_{i,t} / (N n_i)$

    Args:
        penalties: costs taken off the objective.

    Reference: "You may not need ratio clipping in PPO", arXiv:2202.00079. Two other methods share the name.
    """
    return PolicyObjective(ArithmeticMean(), penalties=penalties)
