"""A bound on a cost, kept by a multiplier that adapts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.penalties.base import EvaluatedPenalty, Penalty


class LagrangePenalty(Penalty):
    r"""Keeps the mean of a cost $k$ below a bound: cost $\lambda (k_t - \delta)$ with a dual variable $\lambda \ge 0$.

    After every optimiser step $\lambda \leftarrow [\lambda + \eta (\bar k - \delta)]_+$ (eq. 23), where the average
    $\bar k$ over the whole step is the one that the objective takes. The multiplier is the only state of an objective;
    it is saved with the run. An instance belongs to one run.

    Args:
        cost: the constrained cost, with coefficient 1.
        bound: $\delta$, the largest mean that is free of charge.
        step_size: $\eta$ of the ascent; 0 keeps the multiplier as it is.
        multiplier: $\lambda$ at the start.

    Raises:
        TypeError: `cost` is no `Penalty`.
        ValueError: a number is negative.

    Reference: R2VPO, arXiv:2601.03320, for the variance of the ratio.
    """

    def __init__(self, cost: Penalty, bound: float, step_size: float, multiplier: float = 0.0) -> None:
        if not isinstance(cost, Penalty):
            raise TypeError(f"`cost` is {cost!r}; pass an instance of a subclass of aggregate_po.Penalty.")
        for name, number in (("bound", bound), ("step_size", step_size), ("multiplier", multiplier)):
            if not number >= 0:
                raise ValueError(f"`{name}` is {number}; pass 0 or more.")
        self.cost = cost
        self.bound = bound
        self.step_size = step_size
        self.multiplier = multiplier

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"LagrangePenalty({arguments})"

    @property
    def needs_reference(self) -> bool:
        """Whether the cost does."""
        return self.cost.needs_reference

    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        return self.multiplier * self.observed(log_probs, batch)

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        return self.multiplier * self.cost.token_derivatives(log_probs, batch)

    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """By how much the cost exceeds the bound; its average is the slope of the objective in the multiplier."""
        return self.cost.token_costs(log_probs, batch) - self.bound

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        """See `Penalty`; the cost is evaluated once."""
        cost = self.cost.evaluate(log_probs, batch)
        excess = cost.token_costs - self.bound
        return EvaluatedPenalty(self.multiplier * excess, self.multiplier * cost.token_derivatives, excess.detach())

    def adapt(self, mean_observed: float) -> None:
        """One step of projected ascent."""
        self.multiplier = max(0.0, self.multiplier + self.step_size * mean_observed)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the multiplier back."""
        self.multiplier = state["multiplier"]
