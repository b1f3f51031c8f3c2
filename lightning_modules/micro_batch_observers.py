"""Callbacks that see what a training step computed for each micro-batch, which Lightning's hooks do not pass on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from lightning import Callback, Trainer
from torch import Tensor

from aggregate_po import Evaluated, PerToken, PolicyBatch
from lightning_modules.micro_batch import MicroBatch
from lightning_modules.model.trained import PolicyPass


@dataclass(frozen=True)
class EvaluatedMicroBatch:
    """A micro-batch with what its training step computed; all tensors are detached.

    Args:
        batch: the micro-batch; `batch.closes_update` is True for the last one of an optimizer step.
        log_probs: log-probabilities under the current policy; shape `batch time`; nats.
        entropy: entropy of the distribution of each token; shape `batch time`; nats.
        evaluated: value and gradient weights of the objective.
        inputs: inputs of the objective: those of the batch, with what the forward pass has added.
    """

    batch: MicroBatch
    log_probs: PerToken
    entropy: PerToken
    evaluated: Evaluated
    inputs: PolicyBatch


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


def observe_micro_batch(trainer: Trainer, batch: MicroBatch, passed: PolicyPass, evaluated: Evaluated) -> None:
    """Show a micro-batch to all callbacks that observe micro-batches."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    observers = [callback for callback in callbacks if isinstance(callback, MicroBatchObserver)]
    if not observers:
        return
    detached = replace(evaluated, value=evaluated.value.detach())  # which would keep the graph in memory
    inputs = _without_graph(passed.inputs)
    micro_batch = EvaluatedMicroBatch(batch, passed.log_probs.detach(), passed.entropy.detach(), detached, inputs)
    for observer in observers:
        observer.on_micro_batch(trainer, micro_batch)


def _without_graph(inputs: PolicyBatch) -> PolicyBatch:
    found = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor) and value.requires_grad}
    detached: dict[str, Any] = {name: value.detach() for name, value in found.items()}
    return replace(inputs, **detached) if detached else inputs
