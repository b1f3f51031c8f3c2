"""Soft actor-critic with a value network, on Lightning: replayed transitions in, any improvement of the policy.

This is the first version of soft actor-critic, on which SAC-CEPO builds. Reference: arXiv:1801.01290.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from experiments.classical.control.environments import Environments, Transition
from experiments.classical.control.networks import network
from experiments.classical.control.tanh_gaussian import Improvement, TanhGaussian, sampled

DISCOUNT, SMOOTHING, SCALE = 0.99, 0.005, 0.1


class SoftActorCritic(LightningModule):
    """Two critics, a value network with a smoothed copy, and a policy with any improvement.

    Args:
        state_size: Number of coordinates of a state.
        action_size: Number of coordinates of an action.
        improve: Improvement of the policy.
        temperature: Weight of the entropy.
        hidden: Width of the hidden layers.
        learning_rate: Learning rate of Adam.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        improve: Improvement,
        temperature: float,
        hidden: int,
        learning_rate: float,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.improve, self.learning_rate = improve, learning_rate
        mean, log_deviation = (network(state_size, action_size, hidden) for _ in range(2))
        self.policy = TanhGaussian(mean, log_deviation, temperature)
        self.critics = nn.ModuleList(network(state_size + action_size, 1, hidden) for _ in range(2))
        self.value = network(state_size, 1, hidden)
        self.smoothed_value = copy.deepcopy(self.value).requires_grad_(False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers of critics and value, of the mean, and of the deviation."""
        values = [*self.critics.parameters(), *self.value.parameters()]
        parts = values, self.policy.mean.parameters(), self.policy.log_deviation.parameters()
        return [torch.optim.Adam(part, lr=self.learning_rate, fused=True) for part in parts]

    def quality(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the smaller of both critics; shape `...`."""
        one, other = self.qualities(states, actions)
        return torch.minimum(one, other)

    def qualities(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return both critics; shape `...` each."""
        inputs = torch.cat([states, actions], dim=-1)
        one, other = (critic(inputs).squeeze(-1) for critic in self.critics)
        return one, other

    def training_step(self, batch: Transition, batch_idx: int) -> None:
        """Make one step of critics and value, of the policy, and of the smoothed value."""
        values, mean, deviation = self.optimizers()
        values.zero_grad()
        self.manual_backward(self.value_loss(batch))
        values.step()
        self.improve(self.policy, batch.states, self.quality, mean, deviation)
        with torch.no_grad():
            for smoothed, own in zip(self.smoothed_value.parameters(), self.value.parameters(), strict=True):
                smoothed.lerp_(own, SMOOTHING)

    def value_loss(self, batch: Transition) -> Tensor:
        """Return the squared errors of both critics and of the value network."""
        with torch.no_grad():
            following = self.smoothed_value(batch.next_states).squeeze(-1)
            target = SCALE * batch.rewards + DISCOUNT * torch.where(batch.terminated, 0, following)
            means, deviations = self.policy.mean(batch.states), self.policy.deviation(batch.states)
            soft_value = self.policy.soft_values(batch.states, means, deviations, self.quality)
        errors = [found - target for found in self.qualities(batch.states, batch.actions)]
        errors.append(self.value(batch.states).squeeze(-1) - soft_value)
        return torch.stack([error.square().mean() for error in errors]).sum() / 2


class Replay(IterableDataset[Transition]):
    """Steps environments with a policy that is trained meanwhile, and yields transitions from all steps so far.

    Args:
        environments: Environments.
        policy: Policy; the first steps are random.
        steps: Number of steps of all environments together.
        random_steps: Number of random steps at the beginning.
        batch_size: Number of transitions of a batch.
        updates: Number of batches after each step of all environments.
    """

    def __init__(
        self,
        environments: Environments,
        policy: TanhGaussian,
        steps: int,
        random_steps: int,
        batch_size: int,
        updates: int,
    ) -> None:
        self.environments, self.policy = environments, policy
        self.steps, self.random_steps = steps, random_steps
        self.batch_size, self.updates = batch_size, updates
        self.taken = 0
        self._seen = 0
        states, actions = torch.empty(steps, environments.state_size), torch.empty(steps, environments.action_size)
        numbers, flags = torch.empty(steps), torch.empty(steps, dtype=torch.bool)
        self._table = Transition(states, actions, numbers, states.clone(), flags, flags.clone(), flags.clone())

    def __iter__(self) -> Iterator[Transition]:
        """Yield batches of transitions."""
        while self.taken < self.steps:
            self._keep(self.environments.step(self._actions()))
            if self.taken >= self.random_steps:
                for _ in range(self.updates):
                    rows = torch.randint(self._seen, (self.batch_size,))
                    yield Transition(*(column[rows] for column in self._table))

    def _keep(self, step: Transition) -> None:
        self.taken += len(step.counts)
        first, self._seen = self._seen, self._seen + int(step.counts.sum())
        for column, found in zip(self._table, step, strict=True):
            column[first : self._seen] = found[step.counts]

    @torch.no_grad()
    def _actions(self) -> Tensor:
        states = self.environments.states
        if self.taken < self.random_steps:
            return 2 * torch.rand(len(states), self.environments.action_size) - 1
        return sampled(self.policy.mean(states), self.policy.deviation(states))[0]
