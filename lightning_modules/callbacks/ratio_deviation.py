"""Early stopping of inner epochs when the policy has moved too far from the behavior policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from aggregate_po import masked_sum
from aggregate_po.bounds import bounded, log_ratio_of
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.micro_batch import MicroBatch
from lightning_modules.model.trained import TrainedPolicy
from lightning_modules.policy_module import PolicyModule
from lightning_modules.tally import Tally


class RatioDeviationStop(Callback):
    r"""Stops the inner epochs of a rollout when the mean of $|r - 1|$ over its trained tokens exceeds a bound.

    Before every inner epoch but the first, the log-probabilities of the full rollout are recomputed on all ranks, at
    the cost of a forward pass. The callback logs the measured `ratio/deviation`, and `dropped_updates`, the number of
    optimizer steps that it has dropped so far.

    Args:
        bound: Largest mean of |r - 1| over the trained tokens at which another inner epoch starts.

    Raises:
        ValueError: the bound is not positive.

    Reference: "You may not need ratio clipping in PPO", arXiv:2202.00079.
    """

    def __init__(self, bound: float = 0.25) -> None:
        if not 0 < bound < math.inf:
            raise ValueError(f"`bound` is {bound}; pass a positive mean of |r - 1|.")
        self.bound = bound
        self.configuration = {"bound": bound}
        self.dropped_updates = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if there is only one inner epoch, so that the callback has no effect."""
        if getattr(trainer.datamodule, "epochs_per_rollout", None) == 1:  # type: ignore[attr-defined]
            rank_zero_warn(
                "`epochs_per_rollout` is 1, so RatioDeviationStop never measures and never stops anything; pass 2 or "
                "more epochs to RolloutDataModule, or leave the callback out."
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Measure the deviation between two inner epochs, and drop the rest of the rollout if it is too large."""
        buffer = cast(RolloutLoader, trainer.train_dataloader).buffer
        upcoming = buffer.next_inner_epoch()
        deviation = math.nan  # a metric that is not logged would keep its last value
        if upcoming:
            deviation = self._deviation(trainer, cast(PolicyModule, pl_module).policy, upcoming)
        if deviation > self.bound:
            self.dropped_updates += buffer.end_rollout() // trainer.accumulate_grad_batches
        pl_module.log("ratio/deviation", deviation)
        pl_module.log("dropped_updates", float(self.dropped_updates))

    @torch.no_grad()
    def _deviation(self, trainer: Trainer, policy: TrainedPolicy, batches: Sequence[MicroBatch]) -> float:
        counted = Tally()
        for batch in batches:
            moved = batch.to(policy.device)
            log_probs = policy.current(moved).log_probs
            mask = moved.policy.response_mask
            ratio = bounded(log_ratio_of(log_probs, moved.policy.old_log_probs, mask)).exp()
            counted += Tally.of(deviation=masked_sum((ratio - 1).abs(), mask).sum(), tokens=mask.sum())
        sums = counted.over_ranks(trainer).sums
        return sums["deviation"] / max(sums["tokens"], 1)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the number of dropped optimizer steps."""
        return {"dropped_updates": self.dropped_updates}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of dropped optimizer steps."""
        self.dropped_updates = state_dict["dropped_updates"]
