"""Log-probabilities and entropies of completions from one forward pass, used by every objective."""

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
from lightning_modules.model.linear import Linear
from lightning_modules.model.outputs import logits_only
from lightning_modules.model.rope import fix_rope
from lightning_modules.model.sharding import full_tensor

_SOFTCAP = "final_logit_softcapping"  # attribute of a transformers configuration
_probed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # by model, once for all its passes


def log_probs_and_entropy(
    model: PreTrainedModel,
    batch: Sequences,
    layout: SequenceLayout = SharedPrompts(),
    linear_head: bool | None = None,
) -> tuple[PerToken, PerToken]:
    """Return the log-probabilities of completion tokens, and the detached entropies of their distributions.

    Logits are computed for completion tokens only, in chunks (`aggregate_po.linear_log_probs`). Both results are 0 on
    padding; shape `batch time`; nats.

    Args:
        model: the policy.
        batch: completions with their prompts.
        layout: sequence layout of the forward pass.
        linear_head: whether logits are the output layer's product with the last hidden states and nothing else; tried
            out by the model's first pass when None.
    """
    fix_rope(model)  # unless a policy has fixed it for the lengths of a run
    with logits_only(model):
        return _log_probs_and_entropy(model, batch, layout, linear_head)


def _log_probs_and_entropy(
    model: PreTrainedModel, batch: Sequences, layout: SequenceLayout, linear_head: bool | None
) -> tuple[PerToken, PerToken]:
    if linear_head is None:
        linear_head = _has_linear_head(model, batch)
    mask, targets = batch.completion_mask, batch.completion_ids[batch.completion_mask]
    if linear_head:
        with _head_bypassed(model):
            hidden = layout.last_layer(model, batch)
        weight, bias = _head_tensors(model)  # already gathered by the forward pass if sharded
        softcap = getattr(model.config.get_text_config(), _SOFTCAP, None)
        results = linear_log_probs_and_entropy(hidden, weight, targets, bias, batch.temperature, softcap)
    else:
        results = _from_logits(layout.last_layer(model, batch) / batch.temperature, targets)
    log_probs, entropy = (
        torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
        for values in (results[0], results[1].detach())
    )
    return log_probs, entropy


def _from_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(working_precision(logits), dim=-1)
    entropy = -(log_p.detach().exp() * log_p.detach()).sum(dim=-1)
    return log_p.gather(-1, rearrange(targets, "token -> token 1")).squeeze(-1), entropy


# The output layer


def has_linear_class(model: PreTrainedModel) -> bool:
    """Return whether the output layer is a plain `Linear`, which is all that can be known without data."""
    return type(model.get_output_embeddings()) in (nn.Linear, Linear)


def _has_linear_head(model: PreTrainedModel, batch: Sequences) -> bool:
    if model not in _probed:
        _probed[model] = _probe(model, batch.prompt_ids.new_tensor([[0, 1, 2]]))
        if not _probed[model]:
            rank_zero_warn(
                f"The logits of {type(model).__name__} are more than a product with its last hidden states, so all "
                "logits of a micro-batch are kept until its backward pass; more gradient accumulation saves memory."
            )
    return _probed[model]


def _head(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def _head_tensors(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the output layer, which tensor parallelism replicates on every rank."""
    head = _head(model)
    return full_tensor(head.weight), None if head.bias is None else full_tensor(head.bias)


@contextmanager
def _head_bypassed(model: PreTrainedModel) -> Iterator[None]:
    """Make the model return its last hidden states, with any logit scale applied, as its logits.

    The forward method of the model still runs, and so do its hooks, such as those that gather sharded weights.
    """
    head, config = _head(model), model.config.get_text_config()
    softcap = getattr(config, _SOFTCAP, None)
    # A view would keep all hidden states alive when few are selected, and FSDP2 warns about views.
    head.forward = lambda hidden: hidden.clone()  # type: ignore[method-assign, assignment]
    if softcap is not None:
        setattr(config, _SOFTCAP, None)
    try:
        yield
    finally:
        del head.forward  # restores the method of the class
        if softcap is not None:
            setattr(config, _SOFTCAP, softcap)


@torch.no_grad()
def _probe(model: PreTrainedModel, token_ids: Tensor) -> bool:
    """Whether the logits are the output layer's product with what the model gives when it is set aside."""
    training = model.training
    if not has_linear_class(model):
        return False
    model.eval()  # without dropout both passes agree
    logits = model(token_ids, use_cache=False).logits
    with _head_bypassed(model):
        hidden = model(token_ids, use_cache=False).logits
    model.train(training)
    product = nn.functional.linear(hidden, *_head_tensors(model))
    softcap = getattr(model.config.get_text_config(), _SOFTCAP, None)
    if softcap is not None:
        product = softcap * torch.tanh(product / softcap)
    error = (product - logits).abs().max() / logits.abs().max()
    return bool(error < (1e-4 if hidden.dtype.itemsize >= 4 and product.dtype.itemsize >= 4 else 0.02))
