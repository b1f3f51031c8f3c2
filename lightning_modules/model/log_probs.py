"""The one forward pass that every objective is reached through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from aggregate_po import PerToken, linear_log_probs_and_entropy
from aggregate_po.bounds import working_precision
from lightning_modules.batch import Sequences
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.sharding import whole

_SOFTCAP = "final_logit_softcapping"  # where configurations of transformers have it
_probed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # by model, once for all its passes


def log_probs_and_entropy(
    model: PreTrainedModel,
    batch: Sequences,
    layout: SequenceLayout = SharedPrompts(),
    linear_head: bool | None = None,
) -> tuple[PerToken, PerToken]:
    """Return log-probabilities of the completions' tokens, and the entropy of each distribution, outside the graph.

    Logits are made for tokens of completions alone, and a few at a time (`aggregate_po.linear_log_probs`). Both are 0
    on padding.

    Args:
        model: the policy.
        batch: its completions with their prompts.
        layout: of the forward pass.
        linear_head: whether logits are the output layer's product with the last hidden states and nothing else; tried
            out by the model's first pass when None.
    """
    if linear_head is None:
        linear_head = _has_linear_head(model, batch)
    mask, targets = batch.completion_mask, batch.completion_ids[batch.completion_mask]
    if linear_head:
        with _head_set_aside(model):
            hidden = layout.last_layer(model, batch)
        weight, bias = _head_tensors(model)  # of a sharded model, gathered by now
        softcap = getattr(model.config.get_text_config(), _SOFTCAP, None)
        found = linear_log_probs_and_entropy(hidden, weight, targets, bias, batch.temperature, softcap)
    else:
        found = _of_logits(layout.last_layer(model, batch) / batch.temperature, targets)
    log_probs, entropy = (
        torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
        for values in (found[0], found[1].detach())
    )
    return log_probs, entropy


def _of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(working_precision(logits), dim=-1)
    entropy = -(log_p.detach().exp() * log_p.detach()).sum(dim=-1)
    return log_p.gather(-1, rearrange(targets, "token -> token 1")).squeeze(-1), entropy


# The output layer


def has_linear_class(model: PreTrainedModel) -> bool:
    """Return whether the output layer is a plain `Linear`, which is all that can be known without data."""
    return type(model.get_output_embeddings()) is nn.Linear


def _has_linear_head(model: PreTrainedModel, batch: Sequences) -> bool:
    if model not in _probed:
        _probed[model] = _probe(model, batch.prompt_ids.new_tensor([[0, 1, 2]]))
        if not _probed[model]:
            rank_zero_warn(
                f"The logits of {type(model).__name__} are more than a product with its last hidden states, so all "
                "logits of a micro-batch are kept until its backward pass; more accumulation takes less memory."
            )
    return _probed[model]


def _head(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def _head_tensors(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output layer, which each rank has whole where others are divided."""
    head = _head(model)
    return whole(head.weight), None if head.bias is None else whole(head.bias)


@contextmanager
def _head_set_aside(model: PreTrainedModel) -> Iterator[None]:
    """Have the model give its last hidden states for logits, a scale that it puts on logits included.

    The model's own forward runs all the same, so that whatever hangs on it, such as the gathering of shards, does too.
    """
    head, config = _head(model), model.config.get_text_config()
    softcap = getattr(config, _SOFTCAP, None)
    # A view would keep all hidden states alive where few are asked for, and FSDP2 warns of views.
    head.forward = lambda hidden: hidden.clone()  # type: ignore[method-assign, assignment]
    if softcap is not None:
        setattr(config, _SOFTCAP, None)
    try:
        yield
    finally:
        del head.forward  # the class's own again
        if softcap is not None:
            setattr(config, _SOFTCAP, softcap)


@torch.no_grad()
def _probe(model: PreTrainedModel, token_ids: Tensor) -> bool:
    """Whether the logits are the output layer's product with what the model gives when it is set aside."""
    training = model.training
    if not has_linear_class(model):
        return False
    model.eval()  # twice the same, whatever it drops in training
    logits = model(token_ids, use_cache=False).logits
    with _head_set_aside(model):
        hidden = model(token_ids, use_cache=False).logits
    model.train(training)
    product = nn.functional.linear(hidden, *_head_tensors(model))
    softcap = getattr(model.config.get_text_config(), _SOFTCAP, None)
    if softcap is not None:
        product = softcap * torch.tanh(product / softcap)
    error = (product - logits).abs().max() / logits.abs().max()
    return bool(error < (1e-4 if hidden.dtype.itemsize >= 4 and product.dtype.itemsize >= 4 else 0.02))
