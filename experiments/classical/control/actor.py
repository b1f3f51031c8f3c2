"""Actor of proximal policy optimization, on Lightning, with an objective of the library.

A step is a completion of one token, so the mean over its tokens is the ratio itself. Rollouts, inner epochs and the
early stop are those of `lightning_modules`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from aggregate_po import PerToken, PolicyBatch, PolicyObjective
from experiments.classical.control.environments import Environments
from experiments.classical.control.networks import network


class StepBatch:
    """Steps of a minibatch, with what `RolloutBuffer` and `RatioDeviationStop` read of a micro-batch.

    Args:
        states: states; shape `batch state`.
        actions: actions; shape `batch action`, or `batch` if they are numbers.
        policy: inputs of the objective, one token for each step.
    """

    closes_update = True

    def __init__(self, states: Tensor, actions: Tensor, policy: PolicyBatch) -> None:
        self.states, self.actions, self.policy = states, actions, policy

    def to(self, *arguments: object, **options: object) -> StepBatch:
        """Return a copy on another device."""
        moved = (part.to(*arguments, **options) for part in (self.states, self.actions, self.policy))
        return StepBatch(*moved)

    def select(self, rows: Tensor) -> StepBatch:
        """Return some steps, of which the objective takes the mean."""
        policy = PolicyBatch(
            self.policy.old_log_probs[rows], self.policy.response_mask[rows], self.policy.advantages[rows]
        )
        return StepBatch(self.states[rows], self.actions[rows], policy)


@dataclass(frozen=True)
class CurrentPass:
    """Log-probabilities of the steps of a batch under the current policy; shape `batch 1`."""

    log_probs: PerToken


class StepPolicy(nn.Module):
    """Categorical policy, or a normal one whose deviation does not depend on the state.

    Args:
        environments: Environments, for the sizes of states and actions.
        hidden: Width of the hidden layers.
    """

    device = torch.device("cpu")

    def __init__(self, environments: Environments, hidden: int) -> None:
        super().__init__()
        self.network = network(environments.state_size, environments.action_size, hidden, nn.Tanh)
        nn.init.normal_(self.network[-1].weight, std=0.01)  # actions that hardly depend on the state yet
        self.log_deviation = nn.Parameter(torch.zeros(environments.action_size)) if environments.continuous else None

    def distribution(self, states: Tensor) -> Distribution:
        """Return the distribution of the actions."""
        outputs = self.network(states)
        if self.log_deviation is None:
            return Categorical(logits=outputs, validate_args=False)
        return Independent(Normal(outputs, self.log_deviation.exp(), validate_args=False), 1)

    def current(self, batch: StepBatch) -> CurrentPass:
        """Return the log-probabilities of a batch."""
        log_probs = self.distribution(batch.states).log_prob(batch.actions)
        return CurrentPass(log_probs.unsqueeze(-1))


class Actor(LightningModule):
    """Trains a policy with an objective.

    Args:
        policy: Policy.
        objective: Objective to maximize.
        learning_rate: Learning rate of Adam.
    """

    def __init__(self, policy: StepPolicy, objective: PolicyObjective, learning_rate: float) -> None:
        super().__init__()
        self.policy, self.objective, self.learning_rate = policy, objective, learning_rate

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """Return the negative objective of a minibatch."""
        return -self.objective(self.policy.current(batch).log_probs, batch.policy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
