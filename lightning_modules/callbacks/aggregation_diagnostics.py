"""Diagnostics of how an objective distributes the gradient, logged at each optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning import LightningModule, Trainer
from typing_extensions import override

from lightning_modules.aggregation_metrics import AggregationMetrics
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch, MicroBatchObserver


class AggregationDiagnostics(MicroBatchObserver):
    """Logs how the objective distributes the gradient over tokens, at each optimizer step and by sign of the advantage.

    It logs distributions of the five factors of the gradient weights, of the effective sample size and entropy of the
    concentration, of the exponents and of the raw log ratios; the clipped fraction against the position in the
    completion; and the share of the gradient that the heaviest tokens hold. `AggregationMetrics` defines them. They
    cover all ranks and micro-batches of a step.

    The metrics are in `metrics.csv` at each step, and go to the loggers of the trainer at each
    `log_every_n_steps`-th step.
    """

    def __init__(self) -> None:
        self._metrics = AggregationMetrics()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty optimizer step."""
        self._metrics = AggregationMetrics().to(pl_module.device)

    @override
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Count a micro-batch, and log the metrics after the last one of an optimizer step."""
        batch = micro_batch.batch
        self._metrics.update(micro_batch.evaluated, micro_batch.log_probs, batch.policy)
        if batch.closes_update:
            _log(self._metrics.compute(), trainer)
            self._metrics.reset()


def _log(metrics: Mapping[str, float], trainer: Trainer) -> None:
    """Log metrics that are the same on all ranks, as Lightning's own monitors do.

    `LightningModule.log` takes a tenth of a millisecond or more for each metric.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by Lightning
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), trainer.global_step)
