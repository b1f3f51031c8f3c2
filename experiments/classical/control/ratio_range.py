"""Ranges of the ratios over the inner epochs of each rollout."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer

from experiments.classical.control.actor import Actor
from experiments.classical.control.rollouts import Rollouts

SHARES = (0.0, 0.01, 0.5, 0.99, 1.0)


class RatioRange(Callback):
    r"""Measures the ratios of all steps of a rollout after each inner epoch; after a stop the last ones remain.

    Args:
        rollouts: Rollouts of the run.

    Attributes:
        measured: quantiles of the ratio at `SHARES` and the mean of $|r - 1|$, for each epoch of each rollout.
        returns: mean return of the last 20 episodes, after each rollout.
    """

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts
        self.measured: list[list[list[float]]] = []
        self.returns: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a rollout, which is an epoch of Lightning."""
        self.measured.append([])

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Actor, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Measure the ratios after the last minibatch of an inner epoch."""
        if (batch_idx + 1) % self.rollouts.sizes.minibatches:
            return
        rollout = self.rollouts.rollout
        ratio = (pl_module.policy.current(rollout).log_probs - rollout.policy.old_log_probs).exp().flatten()
        quantiles = ratio.quantile(torch.tensor(SHARES)).tolist()
        self.measured[-1].append([*quantiles, (ratio - 1).abs().mean().item()])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the epochs after a stop, and note the return."""
        found = self.measured[-1]
        found += [found[-1]] * (self.rollouts.sizes.epochs - len(found))
        last = self.rollouts.environments.returns[-20:]
        self.returns.append(sum(last) / len(last) if last else float("nan"))
