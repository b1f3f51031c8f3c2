"""The attention `sdpa` of transformers, within rows of groups, and without needless repeats of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_modules.model.group_row import GroupMasks, GroupRow

_row: ContextVar[GroupRow | None] = ContextVar("row", default=None)


def register_attention() -> None:
    """Replace the attention `sdpa` of transformers and its masks, for all models.

    transformers repeats keys and values among the queries of a group under a mask, since some devices have no fast
    kernel for groups then. That of a CPU serves masks, and returns the same to the bit. Elsewhere a single token, as
    in sampling, needs no repeats either.
    """
    AttentionInterface.register("sdpa", _attention)
    AttentionMaskInterface.register("sdpa", _mask)


@contextmanager
def within_groups(model: PreTrainedModel, row: GroupRow) -> Iterator[None]:
    """Let a model attend within the groups of a row that it reads in the context.

    Raises:
        ValueError: the model has another attention than `sdpa`.
    """
    implementation = model.config.get_text_config()._attn_implementation
    if implementation != "sdpa":
        raise ValueError(f"the attention of the model is {implementation}, which does not split a row into groups")
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def _mask(**options: Any) -> Tensor | GroupMasks | None:
    row = _row.get()
    return sdpa_mask(**options) if row is None else row.masks(sdpa_mask, **options)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    if isinstance(attention_mask, GroupMasks):
        attend = partial(_attention, module)
        return attention_mask.row.attend(attend, query, key, value, attention_mask, **options), None
    with _without_cudnn():
        return _padded_attention(module, query, key, value, attention_mask, **options)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave out the kernels of cuDNN, which makes a plan for each new shape, as nearly every micro-batch has one."""
    enabled = cudnn_sdp_enabled()
    enable_cudnn_sdp(False)
    try:
        yield
    finally:
        enable_cudnn_sdp(enabled)


def _padded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    grouped = query.shape[1] == key.shape[1] * getattr(module, "num_key_value_groups", 1) != key.shape[1]
    if not grouped or attention_mask is None or options.keys() & {"position_bias", "cache"}:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    if key.is_cpu:
        output = scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale, enable_gqa=True)
        return output.transpose(1, 2).contiguous(), None
    if query.shape[2] == attention_mask.shape[1] == 1:
        return single_query_attention(query, key, value, attention_mask, dropout, scale), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def single_query_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scale: float | None
) -> Tensor:
    """Return the attention of one token, without repeating keys and values.

    The queries that share a key are passed as if they were those of successive tokens.

    Args:
        query: queries; shape `batch head 1 size`.
        key: keys; shape `batch key_head time size`.
        value: values; shape `batch key_head time value_size`.
        mask: mask of all heads; shape `batch 1 1 time`.
        dropout: probability of dropout.
        scale: factor of the products of queries and keys; None for one over the root of their size.

    Returns:
        outputs; shape `batch 1 head value_size`.
    """
    batch, heads, _, size = query.shape
    groups = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    output = scaled_dot_product_attention(groups, key, value, mask, dropout, scale=scale)
    return output.reshape(batch, 1, heads, -1)


register_attention()
