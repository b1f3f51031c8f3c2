"""Costs multiplied by a weight of the token: its ratio, its advantage, or the probability it was sampled with."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import EvaluatedPenalty, Penalty, require_constant


@dataclass(frozen=True)
class WeightedCost(Penalty):
    r"""Another cost times a weight, $w_t k_t$.

    A subclass implements `weights`, and `weight_slopes` if the weights depend on the log-probabilities.

    Args:
        cost: Cost that is multiplied by the weight.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: `cost` adapts, as a `LagrangePenalty` does.
    """

    cost: Penalty

    def __post_init__(self) -> None:
        require_constant(self.cost)

    @property
    @override
    def needs_reference(self) -> bool:
        """Whether the cost reads the reference policy."""
        return self.cost.needs_reference

    @abstractmethod
    def weights(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Return finite weights that broadcast to `batch time`, in the precision of `log_probs`."""

    def weight_slopes(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Return the derivative of the weights with respect to `log_probs`; 0 by default, for constant weights."""
        return torch.zeros_like(log_probs)

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.weights(log_probs, batch) * self.cost.token_costs(log_probs, batch)

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.evaluate(log_probs, batch).token_derivatives

    @override
    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        weights, cost = self.weights(log_probs, batch), self.cost.evaluate(log_probs, batch)
        costs = weights * cost.token_costs
        with torch.no_grad():
            derivatives = self.weight_slopes(log_probs, batch) * cost.token_costs + weights * cost.token_derivatives
        return EvaluatedPenalty(costs, derivatives, costs.detach())


@dataclass(frozen=True)
class ImportanceWeighted(WeightedCost):
    r"""Another cost times the ratio, $r_t k_t$, whose expectation is that of the cost under the trained policy.

    With `K3Penalty`, both the value and the gradient $r_t (k_t + k_t')$ are unbiased for the divergence from the
    reference after each prefix, also off policy. The gradient of $k_3$ without the ratio is that of another divergence.

    Args:
        cost: Cost that is multiplied by the ratio.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: `cost` adapts, as a `LagrangePenalty` does.

    Reference: "unbiased KL estimate", DeepSeek-V3.2, arXiv:2512.02556.
    """

    @override
    def weights(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        return bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)).exp()

    @override
    def weight_slopes(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        return torch.where(bounded(log_ratio) == log_ratio, bounded(log_ratio).exp(), 0)


@dataclass(frozen=True)
class AdvantageWeighted(WeightedCost):
    r"""Another cost times the absolute advantage, $|A| \, k_t$, so that signal and penalty have one scale (eq. 48).

    A completion without advantage costs nothing.

    Args:
        cost: Cost that is multiplied by the absolute advantage.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: `cost` adapts, as a `LagrangePenalty` does.

    Reference: SPO, arXiv:2401.16025, for the variance of the ratio.
    """

    @override
    def weights(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        advantages = batch.advantages.abs().to(log_probs.dtype)
        return advantages if batch.has_token_advantages else advantages.unsqueeze(-1)


@dataclass(frozen=True)
class ProbabilityWeighted(WeightedCost):
    r"""Another cost times the probability of the token under the behavior policy, $\pi_\mathrm{old} k_t$ (eq. 49).

    With the variance of the ratio, a token costs by its change of *probability*: for a rare token, a large ratio is
    cheap. The density of a continuous action, which may be above 1, counts as 1.

    Args:
        cost: Cost that is multiplied by the probability.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: `cost` adapts, as a `LagrangePenalty` does.

    Reference: DRPO, arXiv:2606.09821.
    """

    @override
    def weights(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        return batch.old_log_probs.to(log_probs.dtype).clamp(max=0).exp()
