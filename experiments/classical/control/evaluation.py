"""Evaluation of soft actor-critic while it is trained."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer

from experiments.classical.control.environments import Environments
from experiments.classical.control.soft_actor_critic import Replay


class Evaluation(Callback):
    """Evaluates the mean of the policy now and then, always from the same start states.

    Args:
        replay: Replay of the run.
        task: Name of the task.
        every: Number of steps between two evaluations.
        episodes: Number of episodes of an evaluation.

    Attributes:
        measured: mean return and mean deviation of the policy, of each evaluation.
    """

    def __init__(self, replay: Replay, task: str, every: int, episodes: int) -> None:
        self.replay, self.task, self.every, self.episodes = replay, task, every, episodes
        self.measured: list[tuple[float, float]] = []

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Evaluate the policy if it is time."""
        if self.replay.taken < self.every * (len(self.measured) + 1):
            return
        environments, deviations = Environments(self.task, self.episodes, seed=10_000), []
        while len(environments.returns) < self.episodes:
            deviations.append(pl_module.policy.deviation(environments.states).mean().item())
            environments.step(pl_module.policy.mean(environments.states).tanh())
        returns = environments.returns[: self.episodes]
        self.measured.append((sum(returns) / len(returns), sum(deviations) / len(deviations)))
