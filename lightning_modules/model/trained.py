"""Policies of any kind: a data module samples from one, and an `ObjectiveModule` trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from aggregate_po import PerToken, PolicyBatch
from lightning_modules.batch import Extent
from lightning_modules.micro_batch import MicroBatch


@dataclass(frozen=True)
class PolicyPass:
    """Result of a forward pass over a micro-batch.

    Args:
        log_probs: log-probabilities of the tokens; shape `batch time`; nats.
        entropy: entropy of the distribution of each token, detached; shape `batch time`; nats.
        inputs: inputs of the objective: those of the micro-batch, with what only the pass knows.
    """

    log_probs: PerToken
    entropy: PerToken
    inputs: PolicyBatch


class MicroBatchSize(Protocol):
    """Rule for the size of a micro-batch, such as a `SequenceLayout`."""

    def size(self, extent: Extent) -> int:
        """Return the number of tokens that a forward pass over a micro-batch processes, with padding."""


class TrainedPolicy(ABC):
    """A model with its source and, if needed, the initial model as a reference.

    It is not an `nn.Module`: the `ObjectiveModule` registers the model, and the reference is neither trained nor saved.

    Attributes:
        source: model source or name, which error messages name.
        layout: size of micro-batches.
        keeps_reference: whether the initial model is kept as a reference.
        forward_context: makes the autocast context of a forward pass.
        form: arguments of the adapters whose weights a checkpoint holds; None if it holds all weights.
    """

    source: Any
    layout: MicroBatchSize
    keeps_reference: bool = False
    form: dict[str, Any] | None = None
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether the model is loaded."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the model."""

    @abstractmethod
    def keep_reference(self) -> None:
        """Keep the initial model as the reference."""

    @abstractmethod
    def choose_layout(self) -> None:
        """Settle `layout` on the loaded model; every rank must call it."""

    @abstractmethod
    def evaluate(self, batch: MicroBatch) -> PolicyPass:
        """Return the pass over a micro-batch, with log-probabilities attached to the parameters."""

    @torch.no_grad()
    def current(self, batch: MicroBatch) -> PolicyPass:
        """Return the pass over a micro-batch without gradient, in the precision of training."""
        with self.forward_context():
            return self.evaluate(batch)

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a folder from which it can be loaded; every rank must call it."""

    def require_form(self, saved: dict[str, Any] | None) -> None:
        """Check that the weights of a checkpoint are of the form of this policy's.

        Raises:
            ValueError: they are of another form.
        """
        if saved != self.form:
            raise ValueError(f"the weights have the form {self.form}, but those of the checkpoint {saved}; pass that.")
