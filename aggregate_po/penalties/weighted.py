"""Costs with importance weights for tokens that the behavior policy sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import EvaluatedPenalty, Penalty


@dataclass(frozen=True)
class ImportanceWeighted(Penalty):
    r"""Another cost times the ratio, $r_t k_t$, whose expectation is that of the cost under the trained policy.

    With `K3Penalty`, both the value and the gradient $r_t (k_t + k_t')$ are unbiased for the divergence from the
    reference after each prefix, also off policy. The gradient of $k_3$ without the ratio is that of another divergence.

    Args:
        cost: Cost that is multiplied by the ratio.

    Raises:
        TypeError: `cost` is not a `Penalty`.

    Reference: "unbiased KL estimate", DeepSeek-V3.2, arXiv:2512.02556.
    """

    cost: Penalty

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Penalty):
            raise TypeError(f"`cost` is {self.cost!r}; pass an instance of a subclass of aggregate_po.Penalty.")

    @property
    @override
    def needs_reference(self) -> bool:
        """Whether the cost reads `batch.ref_log_probs`."""
        return self.cost.needs_reference

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask))
        return log_ratio.exp() * self.cost.token_costs(log_probs, batch)

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.evaluate(log_probs, batch).token_derivatives

    @override
    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        ratio = bounded(log_ratio).exp()
        cost = self.cost.evaluate(log_probs, batch)
        costs = ratio * cost.token_costs
        with torch.no_grad():
            through_the_ratio = torch.where(bounded(log_ratio) == log_ratio, cost.token_costs, 0)
            derivatives = ratio * (through_the_ratio + cost.token_derivatives)
        return EvaluatedPenalty(costs, derivatives, costs.detach())
