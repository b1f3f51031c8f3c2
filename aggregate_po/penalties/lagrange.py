"""Constraint on the mean of a cost, enforced by an adaptive Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.penalties.base import EvaluatedPenalty, Penalty, require_constant


class LagrangePenalty(Penalty):
    r"""Constraint on the mean of a cost $k$: cost $\lambda (k_t - \delta)$ with a dual variable $\lambda \ge 0$.

    After every optimizer step, $\lambda \leftarrow [\lambda + \eta (\bar k - \delta)]_+$ (eq. 23), where $\bar k$ is
    the average of the cost over the whole step, weighted as in the objective. The multiplier is the only state of an
    objective and is saved in checkpoints. Use one instance per run.

    Args:
        cost: Cost whose mean is bounded; its own coefficient should be 1.
        bound: Upper bound $\delta$ on the mean cost.
        step_size: Step size $\eta$ of the dual ascent; 0 keeps the multiplier constant.
        multiplier: Initial value of the multiplier $\lambda$.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: a number is negative, or the cost adapts itself.

    Reference: R2VPO, arXiv:2601.03320, for the variance of the ratio.
    """

    def __init__(self, cost: Penalty, bound: float, step_size: float, multiplier: float = 0.0) -> None:
        require_constant(cost)
        require_non_negative(bound=bound, step_size=step_size, multiplier=multiplier)
        self.cost = cost
        self.bound = bound
        self.step_size = step_size
        self.multiplier = multiplier

    @override
    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"LagrangePenalty({arguments})"

    @property
    @override
    def needs_reference(self) -> bool:
        """Whether the cost reads the reference policy."""
        return self.cost.needs_reference

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.multiplier * self.observed(log_probs, batch)

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.multiplier * self.cost.token_derivatives(log_probs, batch)

    @override
    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return the excess of the cost over the bound; its average drives the dual ascent."""
        return self.cost.token_costs(log_probs, batch) - self.bound

    @override
    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        cost = self.cost.evaluate(log_probs, batch)
        excess = cost.token_costs - self.bound
        return EvaluatedPenalty(self.multiplier * excess, self.multiplier * cost.token_derivatives, excess.detach())

    @override
    def adapt(self, mean_observed: float) -> None:
        """Update the multiplier by one step of projected dual ascent.

        Raises:
            ValueError: the average is not finite, and would end the constraint or the training.
        """
        if not math.isfinite(mean_observed):
            raise ValueError(f"`mean_observed` is {mean_observed}; pass a finite average, or leave the step out.")
        self.multiplier = max(0.0, self.multiplier + self.step_size * mean_observed)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier."""
        return {"multiplier": self.multiplier}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the multiplier."""
        self.multiplier = state["multiplier"]
