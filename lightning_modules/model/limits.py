"""Limits of token ids and lengths of a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_modules.prompts.limits import SequenceLimits

_MAX_OFFSET = 8  # rows of a table of positions before the first position; OPT has 2


def limits_of(model: PreTrainedModel) -> SequenceLimits:
    """Return the limits of a causal language model.

    A model with a table of positions, such as learned ones, computes no longer sequence than the table. Where positions
    are computed, as rotary ones are, the length in the configuration is only declared.
    """
    config = model.config.get_text_config()
    declared = getattr(config, "max_position_embeddings", None)
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if declared is None:
        biased = getattr(config, "max_seq_len", None)  # MPT computes its biases for this length
        return SequenceLimits(rows, biased, "the model's `max_seq_len` is") if biased else SequenceLimits(rows)
    table = next(_position_tables(model, declared), None)
    if table is not None:
        return SequenceLimits(rows, declared, f"the model's table of positions, `{table}`, holds")
    return SequenceLimits(rows, trained_length=round(declared * _scaling(config, declared)))


@contextmanager
def padding_token_required(source: object) -> Iterator[None]:
    """Explain the error of a model that is loaded in the context and has no embedding for its padding token.

    Args:
        source: hub id, folder or source of the model, for the error message.

    Raises:
        ValueError: the model has none.
    """
    try:
        yield
    except AssertionError as error:  # of `torch.nn.Embedding`
        if "padding_idx" not in str(error).lower():
            raise
        raise ValueError(
            f"`model_name` is {source!r}, whose `pad_token_id` in config.json is no token of its `vocab_size`; correct "
            "it, or set it to null."
        ) from None


def _position_tables(model: nn.Module, declared: int) -> Iterator[str]:
    """Yield the names of parameters and buffers with one row for each position."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        named = "wpe" in name or "pos" in name
        if named and tensor.ndim == 2 and declared <= tensor.shape[0] <= declared + _MAX_OFFSET:
            yield name


def _scaling(config: object, declared: int) -> float:
    """Return the factor by which scaled rotary positions lengthen the declared length."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(scaling, dict) or not isinstance(scaling.get("factor"), (int, float)):
        return 1.0
    original = scaling.get("original_max_position_embeddings") or declared
    return max(original * scaling["factor"] / declared, 1.0)
