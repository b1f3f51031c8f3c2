"""Full weights of a policy, for engines that hold their own copy of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.model.sharding import full_tensor


def policy_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and full tensors of a policy, with the names of its checkpoint.

    Tied weights are yielded under each of their names: `named_parameters` lists them once, and an engine with a
    separate output embedding would keep its old weight. Sharded tensors are gathered one at a time, so every rank must
    exhaust the iterator. Active LoRA adapters of `peft` are merged into the tensors that they adapt.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        weight = full_tensor(value)
        layer, base, part = name.rpartition(".base_layer.")
        if base:
            name = f"{layer}.{part}"
        if base and part == "weight":
            weight = _adapted(weight, layers[layer])
        yield name.removeprefix("base_model.model."), weight


def _adapted(weight: Tensor, layer: Any) -> Tensor:
    """Return the weight of a LoRA layer with its active adapters added; merging in place would round the weight."""
    if layer.merged or layer.disable_adapters:
        return weight
    # Autocast would round the product of the factors, and small updates with it.
    with torch.autocast(weight.device.type, enabled=False):
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                weight = weight + full_tensor(layer.get_delta_weight(adapter))
    return weight
