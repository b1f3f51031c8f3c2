"""Tanh-Gaussian policies, and two ways to improve one: along the gradient of soft actor-critic, and by cross-entropy.

Mean and deviation are separate modules, so that each can be trained in a way of its own. The quality of an action is
the smaller of two critics; an improvement maximizes quality plus entropy, `quality - temperature * log_prob`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from experiments.classical.control.cross_entropy import CrossEntropy

Quality = Callable[[Tensor, Tensor], Tensor]  # of states and actions, both with any first dimensions
_LOG_DEVIATIONS = (-5.0, 2.0)


class TanhGaussian(nn.Module):
    """Policy whose actions are the hyperbolic tangents of normal variables, so that they lie between -1 and 1.

    Args:
        mean: Module from states to means of the normal variables.
        log_deviation: Module from states to logarithms of their standard deviations, which are bounded.
        temperature: Weight of the entropy in the objective; the inverse of the scale of the rewards.
    """

    def __init__(self, mean: nn.Module, log_deviation: nn.Module, temperature: float) -> None:
        super().__init__()
        self.mean, self.log_deviation, self.temperature = mean, log_deviation, temperature

    def deviation(self, states: Tensor) -> Tensor:
        """Return the standard deviations of the normal variables; shape `... action`."""
        return self.log_deviation(states).clamp(*_LOG_DEVIATIONS).exp()

    def soft_values(self, states: Tensor, means: Tensor, deviations: Tensor, quality: Quality) -> Tensor:
        """Return the quality of one sampled action for each state, with its entropy term; shape `...`.

        Args:
            states: states; shape `... state`.
            means: means of the normal variables; shape `... action`.
            deviations: standard deviations of the normal variables; any that broadcast with the means.
            quality: quality of actions.
        """
        actions, log_probs = sampled(means, deviations)
        return quality(states, actions) - self.temperature * log_probs


def tanh_normal(means: Tensor, deviations: Tensor) -> TransformedDistribution:
    """Return the distribution of the hyperbolic tangents of normal variables; the last dimension is that of actions."""
    return TransformedDistribution(Independent(Normal(means, deviations, validate_args=False), 1), _tanh())


def _tanh() -> TanhTransform:
    return TanhTransform(cache_size=1)  # so that the density at a sample needs no inverse, which saturates


def sampled(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Return reparameterized actions, shape `... action`, with their log-densities, shape `...`."""
    distribution = tanh_normal(means, deviations)
    actions = distribution.rsample()
    return actions, distribution.log_prob(actions)


class Improvement(Protocol):
    """Way to improve a policy."""

    def __call__(
        self,
        policy: TanhGaussian,
        states: Tensor,
        quality: Quality,
        mean_optimizer: torch.optim.Optimizer,
        deviation_optimizer: torch.optim.Optimizer,
    ) -> None:
        """Make a step of the optimizers of mean and deviation."""


def by_gradient(
    policy: TanhGaussian,
    states: Tensor,
    quality: Quality,
    mean_optimizer: torch.optim.Optimizer,
    deviation_optimizer: torch.optim.Optimizer,
) -> None:
    """Improve mean and deviation along the reparameterized gradient, as soft actor-critic does."""
    policy.zero_grad()
    (-policy.soft_values(states, policy.mean(states), policy.deviation(states), quality).mean()).backward()
    mean_optimizer.step()
    deviation_optimizer.step()


def by_cross_entropy(search: CrossEntropy) -> Improvement:
    """Return an improvement that regresses the mean to what a search finds, and then improves the deviation alone."""

    def improve(
        policy: TanhGaussian,
        states: Tensor,
        quality: Quality,
        mean_optimizer: torch.optim.Optimizer,
        deviation_optimizer: torch.optim.Optimizer,
    ) -> None:
        """Improve the mean by the search, and the deviation along the gradient at the new mean."""
        means, deviations = policy.mean(states), policy.deviation(states)
        repeated = states.expand(search.candidates, *states.shape)

        def score(candidates: Tensor) -> Tensor:
            return policy.soft_values(repeated, candidates, deviations, quality)

        target = search.maximum(score, means.detach())
        policy.zero_grad()
        nn.functional.mse_loss(means, target).backward()
        mean_optimizer.step()
        (-policy.soft_values(states, policy.mean(states).detach(), deviations, quality).mean()).backward()
        deviation_optimizer.step()

    return improve
