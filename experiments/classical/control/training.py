"""Training with Lightning, without logs and checkpoints."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence

from lightning import Callback, LightningModule, Trainer


def fit(
    module: LightningModule, data: Iterable, epochs: int, callbacks: Sequence[Callback], clip: float | None
) -> None:
    """Train a module on the processor.

    Args:
        module: Module to train.
        data: Data loader.
        epochs: Number of epochs over the data loader.
        callbacks: Callbacks.
        clip: Largest norm of the gradient; None if the module has optimizers of its own.
    """
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
