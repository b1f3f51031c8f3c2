"""ESPO: arithmetic mean without a clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty


def espo(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of unclipped token ratios (eq. 40), for training with early stopping of the inner epochs.

    Use it with the callback `lightning_modules.RatioDeviationStop`, which does the early stopping.

    Gradient weight:
        $A_i \, r_{i,t} / (N n_i)$

    Args:
        penalties: Costs subtracted from the objective.

    Reference: "You may not need ratio clipping in PPO", arXiv:2202.00079. Two other methods share the name.
    """
    return PolicyObjective(ArithmeticMean(), penalties=penalties)
