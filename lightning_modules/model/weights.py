"""The weights of a policy, for engines that keep a copy of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.model.sharding import whole


def policy_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of a policy as in its checkpoint, one after the other.

    Tied weights come under each of their names: `named_parameters` has them once, and an engine that holds the output
    embedding apart would keep the old one. A sharded tensor is gathered when its turn comes, so every rank must go
    through all of them. Active LoRA adapters of `peft` are added to the weights that they adapt.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        weight = whole(value)
        layer, base, part = name.rpartition(".base_layer.")
        if base:
            name = f"{layer}.{part}"
        if base and part == "weight":
            weight = _adapted(weight, layers[layer])
        yield name.removeprefix("base_model.model."), weight


def _adapted(weight: Tensor, layer: Any) -> Tensor:
    """Weight of a LoRA layer with its active adapters; the layer itself is left as it is, since merging rounds."""
    if layer.merged or layer.disable_adapters:
        return weight
    # Autocast would round the product of the factors, and with it what a small step has changed.
    with torch.autocast(weight.device.type, enabled=False):
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                weight = weight + whole(layer.get_delta_weight(adapter))
    return weight
