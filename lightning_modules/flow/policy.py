"""The policy of a flow-matching model: log-probabilities and divergences of denoising steps."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po import PerCompletion, PerToken
from lightning_modules.distributed import rank
from lightning_modules.flow.inputs import DenoisingBatch, FlatSteps, StepCount
from lightning_modules.flow.model import FlowModel, FlowModelSource, checked_model
from lightning_modules.micro_batch import MicroBatch
from lightning_modules.model.trained import PolicyPass, TrainedPolicy

_ENTROPY_OF_STANDARD_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


class FlowPolicy(TrainedPolicy):
    """A flow-matching model, and the initial model as a reference if one is kept.

    The reference is a second model, unless the model itself can take its initial weights.

    Args:
        source: makes the model.
    """

    def __init__(self, source: FlowModelSource) -> None:
        self.source: FlowModelSource = source
        self.form = source.form
        self.layout = StepCount()
        self.reference: FlowModel | None = None
        self._model: FlowModel | None = None

    @property
    @override
    def is_loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> FlowModel:
        """The trained model.

        Raises:
            RuntimeError: the model is not loaded.
        """
        if self._model is None:
            raise RuntimeError("the policy is not loaded; fit or validate its FlowModule, or call `configure_model`.")
        return self._model

    @property
    @override
    def device(self) -> torch.device:
        return self.model.device

    def load(self, forward_context: Any) -> FlowModel:
        """Load the model, and the reference if one is kept.

        Args:
            forward_context: makes the autocast context of a forward pass.

        Raises:
            TypeError: the source makes no `FlowModel`.
            ValueError: `latent_shape` of the model is not a shape, or all its weights are frozen.
        """
        self.forward_context = forward_context
        # Dropout would make the log-densities of a step differ from those that it was sampled with.
        self._model = checked_model(self.source.load(), self.source).eval()
        self._load_reference()
        return self._model

    @override
    def keep_reference(self) -> None:
        self.keeps_reference = True
        if self.is_loaded:
            self._load_reference()

    def _load_reference(self) -> None:
        if self.keeps_reference and self.reference is None and self.model.initial_weights() is None:
            self.reference = self.source.load().eval().requires_grad_(False)

    @override
    def choose_layout(self) -> None:
        """Do nothing: every micro-batch of steps has the same layout."""

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        if rank() == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.source.save(self.model, Path(folder))

    @override
    def evaluate(self, batch: MicroBatch) -> PolicyPass:
        """Return the pass over the stochastic steps of a micro-batch.

        `inputs` has `scale` and `divergence`, and with a reference `ref_log_probs` and `ref_divergence`. The entropy of
        a step is that of its Gaussian, averaged over latent dimensions as log-probabilities are.
        """
        batch = cast(DenoisingBatch, batch)
        steps = batch.stochastic_steps
        rows = batch.at(steps)
        transition = rows.transition(self.model(rows.latents, rows.times, **rows.conditions))
        entropy = torch.where(rows.scales > 0, rows.scales, 1).log() + _ENTROPY_OF_STANDARD_NORMAL
        found = {"divergence": transition.divergence(rows.means)}
        if self.keeps_reference:
            reference = rows.transition(self._reference_velocity(rows))
            found["ref_divergence"] = transition.divergence(reference.mean)
            found["ref_log_probs"] = reference.log_prob(rows.next_latents)
        tables: dict[str, Any] = {name: _table(values, steps, batch) for name, values in found.items()}
        return PolicyPass(
            log_probs=_table(transition.log_prob(rows.next_latents), steps, batch),
            entropy=_table(entropy, steps, batch),
            inputs=replace(batch.policy, scale=batch.scales, **tables),
        )

    @torch.no_grad()
    def _reference_velocity(self, rows: FlatSteps) -> Tensor:
        reference = self.model if self.reference is None else _like(self.reference, self.model)
        with self.model.initial_weights() or nullcontext():
            return reference(rows.latents, rows.times, **rows.conditions)


def _like(reference: FlowModel, model: FlowModel) -> FlowModel:
    """Return the reference on the device of the model and in its precision, to which the trainer has converted it."""
    tensors = zip(*([*each.parameters(), *each.buffers()] for each in (reference, model)), strict=True)
    for own, other in tensors:
        own.data = own.data.to(other.device, other.dtype)
    return reference


def _table(values: PerCompletion, steps: Tensor, batch: DenoisingBatch) -> PerToken:
    """Return values of some steps of each trajectory in a table of all steps, 0 elsewhere; shape `batch time`."""
    table = values.new_zeros(batch.scales.shape)
    return table.index_copy(1, steps, rearrange(values, "(batch step) -> batch step", step=len(steps)))
