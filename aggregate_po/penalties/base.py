"""The interface of a penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aggregate_po.batch import PerToken, PolicyBatch


@dataclass(frozen=True)
class EvaluatedPenalty:
    """Costs, derivatives and observations of a penalty on one batch; shapes `batch time`, anything on padding.

    Args:
        token_costs: cost of each token, attached to the graph of the log-probabilities.
        token_derivatives: derivative of the costs with respect to the log-probabilities; detached.
        observed: what `Penalty.adapt` is given the average of; detached.
    """

    token_costs: PerToken
    token_derivatives: PerToken
    observed: PerToken


class Penalty(ABC):
    """A cost of each token, averaged over a completion's tokens and weighted by the normaliser (eq. 21).

    A penalty may adapt between optimiser steps: `observed` says what it wants to know of each token, `adapt` is given
    the average of that over the whole step, and what it then remembers is its state.

    Subclass requirements:

    - Implement `token_costs`. It must be differentiable, and finite for all finite log-probabilities: subtract them
      with `bounds.log_ratio_of` and bound the result with `bounds.bounded`.
    - Override `needs_reference` to return True if the costs read `batch.ref_log_probs`.
    - May override `token_derivatives` with a closed form, which must equal the derivative of `token_costs`.
    - May override `evaluate` if costs and derivatives share work. It must return what the separate methods return.
    - A penalty that adapts implements `adapt`, may override `observed`, and implements `state_dict` and
      `load_state_dict`, which a checkpoint saves and restores.

    `aggregate_po.testing.check_penalty` checks these requirements.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether `batch.ref_log_probs` is read."""
        return False

    @abstractmethod
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Cost of each token, coefficient included; anything on padding; shape `batch time`."""

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Derivative of the costs with respect to `log_probs`; by autograd, unless a subclass gives the closed form."""
        with torch.inference_mode(False), torch.enable_grad():
            inputs = log_probs.detach().clone().requires_grad_()
            costs = self.token_costs(inputs, batch.to(inputs.device, copy=True))
            (derivatives,) = torch.autograd.grad(costs.sum(), inputs, materialize_grads=True)
        return derivatives

    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """What `adapt` is given the average of; the cost itself, unless a subclass says otherwise."""
        return self.token_costs(log_probs, batch)

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> EvaluatedPenalty:
        """Return costs, derivatives and observations together, as an objective asks for them.

        By the separate methods, one time each; the costs are not computed again where they are what is observed.
        """
        costs = self.token_costs(log_probs, batch)
        observes_costs = type(self).observed is Penalty.observed
        with torch.no_grad():
            observed = costs.detach() if observes_costs else self.observed(log_probs, batch)
            return EvaluatedPenalty(costs, self.token_derivatives(log_probs, batch), observed)

    def adapt(self, mean_observed: float) -> None:  # noqa: B027  # most penalties never change
        """Adapt to the average of `observed` over all ranks and micro-batches of an optimiser step.

        It is called once after every optimiser step that was made; a step that was skipped adapts nothing.
        """

    def state_dict(self) -> dict[str, Any]:
        """What `adapt` has changed; empty for a penalty that never changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take a state back."""
