"""Sizes of a model, of its optimizer and of its passes, found without weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.batch import Extent, Sequences
from lightning_modules.memory import Description, LiveMemory, traced
from lightning_modules.memory.fake import Unmasked, size_of
from lightning_modules.model.layouts import SequenceLayout
from lightning_modules.model.log_probs import has_linear_class, log_probs_and_entropy
from lightning_modules.model.sharding import blocks
from lightning_modules.planning.memory_plan import ModelSizes, OptimizerSizes, PassSizes


def model_sizes(model: PreTrainedModel, autocast: torch.dtype | None = None) -> ModelSizes:
    """Return the sizes of a model, with the copies of its weights that autocast to a type makes.

    The weights may be on any device, such as meta.
    """
    parameters = list(model.parameters())
    by_layer = [size_of(block.parameters()) for block in blocks(model)]
    head = model.get_output_embeddings()
    cast_weights = [
        tensor
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
        for tensor in module.parameters()
        if autocast is not None and tensor.dtype == torch.float32 and tensor.requires_grad
    ]
    return ModelSizes(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        weights=size_of(parameters) + size_of(model.buffers()),
        trained=size_of(parameter for parameter in parameters if parameter.requires_grad),
        largest_layer=max(by_layer, default=0),
        outside_layers=size_of(parameters) - sum(by_layer),
        casts=sum(tensor.numel() * autocast.itemsize for tensor in cast_weights) if autocast else 0,
    )


def optimizer_sizes(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, on_gpu: bool, fused: bool = False
) -> OptimizerSizes:
    """Make one step on the meta device, and return the sizes of the optimizer's state and temporaries.

    Args:
        model: the model that is optimized.
        optimizer: made of the model's parameters.
        on_gpu: whether the step goes over all parameters at once, as optimizers do by default on a GPU.
        fused: whether the step is one kernel, which needs no temporaries.
    """
    for group in optimizer.param_groups:
        if on_gpu and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with LiveMemory() as memory:
        optimizer.step()
        temporaries = memory.peak - memory.live
    kept = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    return OptimizerSizes(state=size_of(kept), step=0 if fused else temporaries)


@dataclass(frozen=True)
class PassShape:
    """A micro-batch in which every prompt and every completion is as long as the longest.

    Args:
        prompts: number of them.
        completions: number of them.
        prompt_length: tokens.
        completion_length: tokens.
    """

    prompts: int
    completions: int
    prompt_length: int
    completion_length: int

    @property
    def extent(self) -> Extent:
        """Extent of the micro-batch, as a layout is asked for its size."""
        return Extent(
            prompts=self.prompts,
            longest_prompt=self.prompt_length,
            completions=self.completions,
            longest=self.completion_length,
            tokens=self.completions * self.completion_length,
            prompt_tokens=self.completions * self.prompt_length,
        )


def pass_sizes(description: Description, shape: PassShape, gradients_kept: bool = True) -> PassSizes:
    """Return what the forward and backward pass of a micro-batch takes besides weights and gradients.

    Args:
        description: the policy without its weights.
        shape: shape of the micro-batch.
        gradients_kept: whether the backward pass adds to gradients that are there, or makes them; in the forward pass
            there are those of the step before.
    """
    with FakeTensorMode():
        model, batch = description.model("cpu"), _sequences(shape)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if gradients_kept:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        with LiveMemory() as memory, Unmasked():
            watched = _WatchedLayout(description.layout, memory)
            with description.context():
                log_probs, entropy = _log_probs_and_entropy(model, batch, watched)
            head_forward = memory.taken_peak()
            del entropy
            log_probs.backward(torch.ones_like(log_probs))
            in_backward = memory.taken_peak()
    made = 0 if gradients_kept else size_of(trained)  # which a plan counts apart
    activations = max(watched.forward, in_backward - made)
    in_head = max(head_forward, watched.head_backward - made)
    return PassSizes(activations=activations, head=max(in_head - activations, 0))


def scoring_size(description: Description, shape: PassShape) -> int:
    """Return what the log-probabilities of a micro-batch take outside any graph, besides weights."""
    with traced(description) as (model, memory):
        _log_probs_and_entropy(model, _sequences(shape), description.layout)
    return memory.peak


def _log_probs_and_entropy(model: PreTrainedModel, batch: Sequences, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    """Return those of a model without data, on which the output layer cannot be tried out."""
    return log_probs_and_entropy(model, batch, layout, linear_head=has_linear_class(model))


def _sequences(shape: PassShape) -> Sequences:
    """Return a micro-batch without padding, of which only the shapes are known."""
    prompt_ids = torch.zeros(shape.prompts, shape.prompt_length, dtype=torch.long)
    completion_ids = torch.zeros(shape.completions, shape.completion_length, dtype=torch.long)
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=torch.ones_like(prompt_ids, dtype=torch.bool),
        prompt_of=torch.zeros(shape.completions, dtype=torch.long),
        completion_ids=completion_ids,
        completion_mask=torch.ones_like(completion_ids, dtype=torch.bool),
    )


class _WatchedLayout(SequenceLayout):
    """Another layout, with a note of where its passes begin and end."""

    def __init__(self, layout: SequenceLayout, memory: LiveMemory) -> None:
        self.layout, self.memory = layout, memory
        self.forward = self.head_backward = 0

    @override
    def size(self, extent: Extent) -> int:
        return self.layout.size(extent)

    @override
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        states = self.layout.last_layer(model, batch)
        self.forward = self.memory.taken_peak()
        states.register_hook(self._head_is_done)
        return states

    def _head_is_done(self, gradient: Tensor) -> None:
        self.head_backward = self.memory.taken_peak()
