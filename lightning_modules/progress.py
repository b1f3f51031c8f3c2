"""Progress on the terminal: one bar for the updates with the live reward, one for the rollout in hand."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm


def progress_bar(**options: Any) -> tqdm:
    """A `tqdm` bar that redraws twice a second on a terminal, and prints a line twice a minute into a file."""
    return tqdm(**{"mininterval": 0.5 if sys.stderr.isatty() else 30.0, "dynamic_ncols": True, **options})


class TrainingProgressBar(ProgressBar):
    """One bar over all optimiser steps of the run; Lightning's own begins anew with each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on the ranks that print nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where a resumed run stands."""
        total = trainer.estimated_stepping_batches
        self._bar = progress_bar(
            desc="updates",
            unit="step",
            total=None if total == float("inf") else int(total),
            initial=trainer.global_step,
            disable=not self._enabled,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by the optimiser steps made since."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            shown = self.get_metrics(trainer, pl_module)
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if isinstance(v, float)}, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
