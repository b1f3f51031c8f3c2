"""Progress bars of a training run: rollouts with the current reward, and updates."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_modules.micro_batch import current_rollout_metrics
from lightning_modules.progress import progress_bar


class TrainingProgressBar(ProgressBar):
    """Progress bars of rollouts and optimizer steps over the full run; that of Lightning restarts each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self._rollouts: tqdm | None = None
        self._updates: tqdm | None = None
        self._shown: dict[str, str] = {}
        self._enabled = True

    @override
    def disable(self) -> None:
        """Disable the bars; Lightning calls this on all ranks but rank 0."""
        self._enabled = False

    @override
    def enable(self) -> None:
        """Enable the bars again."""
        self._enabled = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bars at the current step, which a resumed run starts from."""
        updates_per_rollout = max(int(trainer.num_training_batches) // trainer.accumulate_grad_batches, 1)
        updates = trainer.estimated_stepping_batches
        unlimited = updates == float("inf")
        self._shown = {}
        self._rollouts = progress_bar(
            desc="rollouts",
            unit="rollout",
            total=None if unlimited else math.ceil(updates / updates_per_rollout),
            initial=math.ceil(trainer.global_step / updates_per_rollout),
            disable=not self._enabled,
        )
        self._updates = progress_bar(
            desc="updates",
            unit="step",
            total=None if unlimited else int(updates),
            initial=trainer.global_step,
            disable=not self._enabled,
        )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count a rollout at its first micro-batch, and show its reward."""
        if self._rollouts is not None and batch_idx == 0:
            names = {"reward": "reward", "completions/mean_length": "length"}
            metrics = current_rollout_metrics(trainer)
            shown = {label: f"{metrics[name]:.3g}" for name, label in names.items() if name in metrics}
            self._rollouts.set_postfix(shown, refresh=False)
            self._rollouts.update()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar by the optimizer steps made since the last call."""
        if self._updates is not None and trainer.global_step > self._updates.n:
            shown = self.get_metrics(trainer, pl_module)
            numbers = {name: value for name, value in shown.items() if isinstance(value, float)}
            # An update without any token to train on has no entropy; that of the one before stays.
            self._shown |= {name: f"{value:.3g}" for name, value in numbers.items() if not math.isnan(value)}
            self._updates.set_postfix(self._shown, refresh=False)
            self._updates.update(trainer.global_step - self._updates.n)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bars."""
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bars, so that the error message starts on a new line."""
        self._close()

    def _close(self) -> None:
        for bar in (self._updates, self._rollouts):
            if bar is not None:
                bar.close()
        self._rollouts = self._updates = None
