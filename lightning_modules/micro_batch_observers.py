"""Callbacks that see what a training step computed for each micro-batch, which Lightning's hooks do not pass on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from lightning import Callback, Trainer

from aggregate_po import Evaluated, PerToken
from lightning_modules.micro_batch import MicroBatch


@dataclass(frozen=True)
class EvaluatedMicroBatch:
    """A micro-batch with what its training step computed; all tensors are detached.

    Args:
        batch: the micro-batch; `batch.closes_update` is True for the last one of an optimizer step.
        log_probs: log-probabilities under the current policy; shape `batch time`; nats.
        entropy: entropy of the distribution of each token; shape `batch time`; nats.
        evaluated: value and gradient weights of the objective.
    """

    batch: MicroBatch
    log_probs: PerToken
    entropy: PerToken
    evaluated: Evaluated


class MicroBatchObserver(Callback, ABC):
    """Base class of callbacks that see each micro-batch of the training with its gradient weights.

    Subclass requirements:

    - Implement `on_micro_batch`. Every rank calls it, with its own micro-batches and as often as the others, so it may
      gather over ranks. It may log metrics by `trainer.lightning_module.log`. Do not change what it receives. A resumed
      run repeats all micro-batches of an optimizer step that was not made.
    """

    @abstractmethod
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Observe a micro-batch, before its backward pass; it is part of optimizer step `trainer.global_step + 1`."""


def observe_micro_batch(
    trainer: Trainer, batch: MicroBatch, log_probs: PerToken, entropy: PerToken, evaluated: Evaluated
) -> None:
    """Show a micro-batch to all callbacks that observe micro-batches."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    observers = [callback for callback in callbacks if isinstance(callback, MicroBatchObserver)]
    if not observers:
        return
    detached = replace(evaluated, value=evaluated.value.detach())  # which would keep the graph in memory
    micro_batch = EvaluatedMicroBatch(batch, log_probs.detach(), entropy.detach(), detached)
    for observer in observers:
        observer.on_micro_batch(trainer, micro_batch)
