"""Interface of penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aggregate_po.batch import PerToken, PolicyBatch


@dataclass(frozen=True)
class EvaluatedPenalty:
    """Costs, derivatives and observations of a penalty on one batch; shapes `batch time`, arbitrary on padding.

    Args:
        token_costs: Cost of each token, attached to the graph of the log-probabilities.
        token_derivatives: Derivative of the costs with respect to the log-probabilities; detached.
        observed: Per-token observation whose average `Penalty.adapt` receives; detached.
    """

    token_costs: PerToken
    token_derivatives: PerToken
    observed: PerToken


class Penalty(ABC):
    """Cost of each token, averaged over the tokens of a completion and weighted by the normalizer (eq. 21).

    A subclass implements `token_costs`; autograd then gives the derivatives. A subclass may override
    `token_derivatives` with a closed form, which must equal the derivative. To share work between the methods, it may
    also override `evaluate`, which must return the results of the separate methods.

    Subclass requirements:

    - Implement `token_costs`. It must be differentiable, and finite for all finite log-probabilities: subtract them
      with `bounds.log_ratio_of` and bound the result with `bounds.bounded`.
    - Override `needs_reference` to return True if the costs read `batch.ref_log_probs` or `batch.ref_divergence`.
    - May override `token_derivatives` with a closed form, which must equal the derivative of `token_costs`.
    - May override `evaluate` if costs and derivatives share work. It must return what the separate methods return.
    - A penalty that adapts implements `adapt`, may override `observed`, and implements `state_dict` and
      `load_state_dict`, which a checkpoint saves and restores.

    `aggregate_po.testing.check_penalty` checks these requirements.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether the costs read the reference policy: `batch.ref_log_probs` or `batch.ref_divergence`."""
        return False

    @abstractmethod
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return the cost of each token, coefficient included; arbitrary on padding; shape `batch time`."""

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return the derivative of the costs with respect to `log_probs`, by autograd unless overridden."""
        with torch.inference_mode(False), torch.enable_grad():
            inputs = log_probs.detach().clone().requires_grad_()
            costs = self.token_costs(inputs, batch.to(inputs.device, copy=True))
            if not costs.requires_grad:
                return torch.zeros_like(inputs)
            (derivatives,) = torch.autograd.grad(costs.sum(), inputs, materialize_grads=True)
        return derivatives

    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return the observation whose average `adapt` receives; by default the cost."""
        return self.token_costs(log_probs, batch)

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        """Return costs, derivatives and observations together.

        The default calls each separate method once, and reuses the costs if they are the observation.
        """
        costs = self.token_costs(log_probs, batch)
        observes_costs = type(self).observed is Penalty.observed
        with torch.no_grad():
            observed = costs.detach() if observes_costs else self.observed(log_probs, batch)
            return EvaluatedPenalty(costs, self.token_derivatives(log_probs, batch), observed)

    def adapt(self, mean_observed: float) -> None:  # noqa: B027  # most penalties never change
        """Adapt to the average of `observed` over all ranks and micro-batches of an optimizer step.

        The objective calls this method once after every optimizer step, and not after a skipped one.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the adaptive state; empty for a penalty that never changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore a state that `state_dict` returned."""


def require_constant(cost: object) -> None:
    """Check the cost that another penalty contains.

    Raises:
        TypeError: `cost` is not a `Penalty`.
        ValueError: it adapts; the objective tells only the outer penalty what it has observed.
    """
    if not isinstance(cost, Penalty):
        raise TypeError(f"`cost` is {cost!r}; pass an instance of a subclass of aggregate_po.Penalty.")
    if type(cost).adapt is not Penalty.adapt:
        raise ValueError(
            f"`cost` is {cost!r}, which would never adapt inside another penalty; pass a cost that does not adapt, and "
            "put the other penalty inside, as in LagrangePenalty(AdvantageWeighted(cost), ...)."
        )
