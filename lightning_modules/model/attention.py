"""Attention on a CPU with fewer heads of keys and values than of queries, without repeating those."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def register_grouped_attention() -> None:
    """Let the attention `sdpa` of transformers share keys and values among the queries of a group on a CPU.

    transformers repeats them under a mask, since some devices have no fast kernel for groups then. That of a CPU serves
    masks, and returns the same to the bit.
    """
    AttentionInterface.register("sdpa", _attention)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    grouped = query.shape[1] == key.shape[1] * getattr(module, "num_key_value_groups", 1) != key.shape[1]
    if not (grouped and key.is_cpu and attention_mask is not None) or options.keys() & {"position_bias", "cache"}:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    output = scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None
