"""Interface of a flow-matching model, and of what makes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example


class FlowModel(nn.Module, ABC):
    """Velocity of latents, with what turns examples into conditions and latents into samples.

    Subclass requirements:

    - Set `latent_shape`, the shape of the latents of one sample.
    - Implement `encode`, `forward` and `decode`. Rows must not depend on each other.
    - Parameters that require a gradient are trained. Freeze the others, such as those of text encoders.
    - Time runs from 1 (noise) to 0 (sample), and the velocity is noise minus sample. Guidance is part of `forward`.
    """

    latent_shape: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.parameters()).device

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the conditions of examples, on the device of the model and without gradient.

        Args:
            examples: examples of the data set.

        Returns:
            Keyword arguments of `forward`. The first dimension of each tensor is the examples, and rows can be selected
            and repeated.
        """

    @abstractmethod
    def forward(self, latents: Tensor, times: PerCompletion, **conditions: Tensor) -> Tensor:
        """Return the velocity of latents, in any precision; shape `batch *latent`.

        Args:
            latents: present latents, in float32 or float64 even where the weights are in half precision; shape
                `batch *latent`.
            times: time of each row, from 1 (noise) to 0 (sample); shape `batch`.
            conditions: rows of what `encode` returned.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Sequence[Any]:
        """Return the samples that rewards receive, one for each row of the latents at time 0.

        Points are tensors on the CPU, in the shape of the latents.

        Args:
            latents: latents at time 0; shape `batch *latent`.
        """

    def initial_weights(self) -> AbstractContextManager[None] | None:
        """Return a context in which this model has its initial weights, such as one that disables adapters.

        The model is then its own reference. When None, as by default, the source loads a second model for that.
        """
        return None


class FlowModelSource(ABC):
    """Makes a flow-matching model with its initial weights.

    Subclass requirements:

    - Implement `prepare`, `load` and `save`. `prepare` is called first.
    - The same arguments must always give the same weights, because the reference and resumed adapters are loaded again.
    - Leave the random state of the process as it is.
    - Constructor arguments become options of the command line, so annotate and document them.
    - If weights are frozen, implement `form`. Checkpoints then leave them out, and a resume loads them again.
    """

    @property
    def form(self) -> dict[str, Any] | None:
        """Form of the trained weights, such as the arguments of adapters; None if all weights are trained.

        A checkpoint of another form is refused.
        """
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Make what does not exist yet, such as weights that are trained locally.

        Several processes may call it at once, so write to a scratch folder and rename that.
        """

    @abstractmethod
    def load(self) -> FlowModel:
        """Return a new model with the initial weights, on the CPU; the same weights in every call."""

    @abstractmethod
    def save(self, model: FlowModel, folder: Path) -> None:
        """Write the weights of a trained model to an existing folder.

        Args:
            model: model that `load` returned, after training.
            folder: folder to write to.
        """


def checked_model(model: object, source: FlowModelSource) -> FlowModel:
    """Return a model that a source has made, after a check of what every model needs.

    Raises:
        TypeError: it is no `FlowModel`.
        ValueError: `latent_shape` is not a shape, or all weights are frozen.
    """
    made = f"`model` {type(source).__name__} made a {type(model).__name__}"
    if not isinstance(model, FlowModel):
        raise TypeError(f"{made}; return an instance of a subclass of lightning_modules.flow.FlowModel from `load`.")
    shape = getattr(model, "latent_shape", None)
    if (
        not isinstance(shape, (tuple, list))
        or not shape
        or not all(isinstance(size, int) and size > 0 for size in shape)
    ):
        raise ValueError(
            f"{made} whose `latent_shape` is {shape!r}; set the shape of one sample, such as (16, 64, 64)."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{made} whose weights are all frozen; leave `requires_grad` of those to train.")
    return model
