"""Rollouts for proximal policy optimization: steps of environments, their advantages, and the critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aggregate_po import PolicyBatch
from experiments.classical.control.actor import StepBatch, StepPolicy
from experiments.classical.control.environments import Environments, Transition
from experiments.classical.control.networks import network
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer
from lightning_modules.data.loader import RolloutLoader


def generalized_advantages(
    step: Transition, values: Tensor, next_values: Tensor, discount: float, decay: float
) -> Tensor:
    r"""Return advantages $A_t = \delta_t + \gamma \lambda A_{t+1}$; shape `step environment`.

    The sum ends with the episode. At the end of the task, but not at its time limit, the next value is 0 in
    $\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$.

    Args:
        step: rewards and ends; shape `step environment` each.
        values: values of the states.
        next_values: values of the states after each step.
        discount: $\gamma$.
        decay: $\lambda$.

    Reference: arXiv:1506.02438.
    """
    errors = step.rewards + discount * torch.where(step.terminated, 0, next_values) - values
    advantages, following = torch.zeros_like(errors), torch.zeros_like(errors[0])
    for time in reversed(range(len(errors))):
        following = errors[time] + discount * decay * torch.where(step.ended[time], 0, following)
        advantages[time] = following
    return advantages


@dataclass(frozen=True)
class Sizes:
    """Numbers of a run.

    Args:
        steps: Steps of each environment in a rollout.
        epochs: Inner epochs of a rollout.
        minibatches: Optimizer steps of an epoch.
        discount: Discount of the rewards.
        decay: Decay of the advantages.
        learning_rate: Learning rate of actor and critic.
    """

    steps: int
    epochs: int
    minibatches: int
    discount: float
    decay: float
    learning_rate: float


class Rollouts:
    """Makes rollouts with advantages, and trains the critic on each; it has the same epochs whatever stops the actor.

    Args:
        environments: Environments.
        policy: Policy, which is trained meanwhile.
        sizes: Numbers of the run.
        hidden: Width of the hidden layers of the critic.

    Attributes:
        rollout: all steps of the current rollout.
    """

    rollout: StepBatch

    def __init__(self, environments: Environments, policy: StepPolicy, sizes: Sizes, hidden: int) -> None:
        self.environments, self.policy, self.sizes = environments, policy, sizes
        self.critic = network(environments.state_size, 1, hidden, nn.Tanh)
        self._optimizer = torch.optim.Adam(self.critic.parameters(), lr=sizes.learning_rate, fused=True)

    def loader(self) -> RolloutLoader:
        """Return the data loader of a run, whose epochs are rollouts."""
        batches = self.sizes.epochs * self.sizes.minibatches
        return RolloutLoader(RolloutBuffer(self.make, batches, self.sizes.epochs))

    def make(self, number: int) -> PreparedRollout:
        """Return the next rollout."""
        step, log_probs = self._stepped()
        with torch.no_grad():
            values, following = (self.critic(states).squeeze(-1) for states in (step.states, step.next_states))
        advantages = generalized_advantages(step, values, following, self.sizes.discount, self.sizes.decay)
        counts = step.counts
        states, targets, advantages = step.states[counts], (advantages + values)[counts], advantages[counts]
        normalized = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        old = log_probs[counts].unsqueeze(-1)
        batch = PolicyBatch(old, torch.ones_like(old, dtype=torch.bool), normalized)
        self.rollout = StepBatch(states, step.actions[counts], batch)
        self._fit(states, targets)
        return PreparedRollout([self.rollout.select(rows) for rows in self._order(len(states))])

    def _order(self, steps: int) -> list[Tensor]:
        """Return the steps of all minibatches of all epochs."""
        orders = [torch.randperm(steps) for _ in range(self.sizes.epochs)]
        return [rows for order in orders for rows in order.tensor_split(self.sizes.minibatches)]

    @torch.no_grad()
    def _stepped(self) -> tuple[Transition, Tensor]:
        """Return the transitions of a rollout, and the log-probabilities of their actions."""
        steps, log_probs = [], []
        for _ in range(self.sizes.steps):
            distribution = self.policy.distribution(self.environments.states)
            actions = distribution.sample()
            log_probs.append(distribution.log_prob(actions))
            steps.append(self.environments.step(actions))
        return Transition(*map(torch.stack, zip(*steps, strict=True))), torch.stack(log_probs)

    def _fit(self, states: Tensor, targets: Tensor) -> None:
        for rows in self._order(len(states)):
            self._optimizer.zero_grad()
            (self.critic(states[rows]).squeeze(-1) - targets[rows]).square().mean().backward()
            self._optimizer.step()
