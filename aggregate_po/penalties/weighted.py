"""Costs corrected for the policy that drew the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import EvaluatedPenalty, Penalty


@dataclass(frozen=True)
class ImportanceWeighted(Penalty):
    r"""Another cost times the ratio, $r_t k_t$, so that its expectation is the one under the policy that is trained.

    With `K3Penalty` the value *and* the gradient, $r_t (k_t + k_t')$, are unbiased for the divergence from the
    reference after each prefix, off policy too; bare $k_3$ has the gradient of another divergence.

    Args:
        cost: the cost.

    Raises:
        TypeError: `cost` is no `Penalty`.

    Reference: "unbiased KL estimate", DeepSeek-V3.2, arXiv:2512.02556.
    """

    cost: Penalty

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Penalty):
            raise TypeError(f"`cost` is {self.cost!r}; pass an instance of a subclass of aggregate_po.Penalty.")

    @property
    def needs_reference(self) -> bool:
        """Whether the cost does."""
        return self.cost.needs_reference

    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        log_ratio = bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask))
        return log_ratio.exp() * self.cost.token_costs(log_probs, batch)

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        return self.evaluate(log_probs, batch).token_derivatives

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        """See `Penalty`; the cost is evaluated once, although the derivative of the product needs it too."""
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        ratio = bounded(log_ratio).exp()
        cost = self.cost.evaluate(log_probs, batch)
        costs = ratio * cost.token_costs
        with torch.no_grad():
            through_the_ratio = torch.where(bounded(log_ratio) == log_ratio, cost.token_costs, 0)
            derivatives = ratio * (through_the_ratio + cost.token_derivatives)
        return EvaluatedPenalty(costs, derivatives, costs.detach())
