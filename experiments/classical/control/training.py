"""Training with Lightning, without logs and checkpoints."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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
    with _errors_only():
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


@contextmanager
def _errors_only() -> Iterator[None]:
    """Keep Lightning's messages and warnings out of the output, and let them through again afterwards."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)
