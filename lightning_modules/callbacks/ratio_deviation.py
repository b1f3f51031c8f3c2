"""Early stopping of the inner epochs: a rollout is left when the policy has moved too far from the one that drew it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from aggregate_po import masked_sum
from aggregate_po.bounds import bounded, log_ratio_of
from lightning_modules.batch import RolloutBatch
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.model.policy import Policy
from lightning_modules.policy_module import PolicyModule
from lightning_modules.tally import Tally


class RatioDeviationStop(Callback):
    r"""Ends the inner epochs of a rollout when the mean of $|r - 1|$ over its trained tokens passes a bound.

    Before every inner epoch but the first, the log-probabilities of the whole rollout are computed anew, on all ranks,
    which costs a forward pass. It logs `ratio/deviation` when it measures, and `dropped_updates`, the optimiser steps
    that it has left out so far.

    Args:
        bound: largest mean deviation with which another epoch is begun.

    Raises:
        ValueError: the bound is not positive.

    Reference: "You may not need ratio clipping in PPO", arXiv:2202.00079.
    """

    def __init__(self, bound: float = 0.25) -> None:
        if not bound > 0:
            raise ValueError(f"`bound` is {bound}; pass a positive mean of |r - 1|.")
        self.bound = bound
        self.dropped_updates = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where there is nothing between which to measure."""
        if getattr(trainer.datamodule, "epochs_per_rollout", None) == 1:  # type: ignore[attr-defined]
            rank_zero_warn(
                "`epochs_per_rollout` is 1, so RatioDeviationStop never measures and never stops anything; pass 2 or "
                "more epochs to RolloutDataModule, or leave the callback out."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RolloutBatch, batch_idx: int
    ) -> None:
        """Measure between two inner epochs."""
        loader = cast(RolloutLoader, trainer.train_dataloader)
        upcoming = loader.next_inner_epoch()
        deviation = math.nan  # where nothing is measured, or the last figure would stand there still
        if upcoming:
            deviation = self._deviation(trainer, cast(PolicyModule, pl_module).policy, upcoming)
        if deviation > self.bound:
            self.dropped_updates += loader.end_rollout() // trainer.accumulate_grad_batches
        pl_module.log("ratio/deviation", deviation)
        pl_module.log("dropped_updates", float(self.dropped_updates))

    @torch.no_grad()
    def _deviation(self, trainer: Trainer, policy: Policy, batches: Sequence[RolloutBatch]) -> float:
        counted = Tally()
        for batch in batches:
            here = batch.to(policy.device)
            log_probs = policy.current_log_probs(here)
            mask = here.policy.response_mask
            ratio = bounded(log_ratio_of(log_probs, here.policy.old_log_probs, mask)).exp()
            counted += Tally.of(deviation=masked_sum((ratio - 1).abs(), mask).sum(), tokens=mask.sum())
        sums = counted.over_ranks(trainer).sums
        return sums["deviation"] / max(sums["tokens"], 1)

    def state_dict(self) -> dict[str, Any]:
        """The count, for a checkpoint."""
        return {"dropped_updates": self.dropped_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.dropped_updates = state_dict["dropped_updates"]
