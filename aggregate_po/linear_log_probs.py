"""Log-probabilities of target tokens computed from hidden states, one chunk of tokens at a time.

The logits (tokens times vocabulary) are the largest tensor of a training step. Objectives depend on the model through
log-probabilities only, so one function that never materializes all logits, and recomputes them in the backward pass,
saves this memory for every objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from aggregate_po.bounds import working_precision
from aggregate_po.products import product
from aggregate_po.shapes import bind_shapes

Hidden = Annotated[Tensor, "... hidden"]
VocabularyWeight = Annotated[Tensor, "vocabulary hidden"]
PerVocabulary = Annotated[Tensor, "vocabulary"]
Tokens = Annotated[Tensor, "..."]

_LOGITS_AT_A_TIME = 2**24
_TOKENS_AT_LEAST = 256  # every chunk updates the whole gradient of the weight, so small chunks are slow


def linear_log_probs(
    hidden: Hidden,
    weight: VocabularyWeight,
    targets: Tokens,
    bias: PerVocabulary | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> Tokens:
    r"""Return the log-probabilities of `targets`, $\log \mathrm{softmax}(z / T)$.

    The logits are $z = h W^\top + b$, or $c \tanh((h W^\top + b) / c)$ with a soft cap. At most
    `chunk_size` tokens' logits are held at a time; the backward pass recomputes them.

    Args:
        hidden: the model's last hidden states; shape `... hidden`.
        weight: weight of the output layer; shape `vocabulary hidden`.
        targets: token ids; shape `...`.
        bias: bias of the output layer; shape `vocabulary`.
        temperature: sampling temperature $T$.
        softcap: soft cap $c$ on the logits, for models that have one.
        chunk_size: tokens per chunk; None chooses a chunk of 16 million logits, but at least 256 tokens.

    Returns:
        Log-probabilities in nats, in at least float32 whatever the precision of `hidden`; shape `...`.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.

    Matrix products use the precision of the inputs, or of autocast if enabled. Everything else, including the sum of
    the gradient of `weight` over the chunks, is in at least float32. Double backward is not supported.
    """
    return _token_statistics(hidden, weight, targets, bias, temperature, softcap, chunk_size, False)[0]


def linear_log_probs_and_entropy(
    hidden: Hidden,
    weight: VocabularyWeight,
    targets: Tokens,
    bias: PerVocabulary | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> tuple[Tokens, Tokens]:
    """Return the log-probabilities of `linear_log_probs` and the entropies, both differentiable; shapes `...`; nats."""
    return _token_statistics(hidden, weight, targets, bias, temperature, softcap, chunk_size, True)


@dataclass(frozen=True)
class _Head:
    """Output layer of a model with soft cap and temperature."""

    temperature: float
    softcap: float | None
    product_dtype: torch.dtype

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the logits divided by the temperature, and the slope of the soft cap if there is one."""
        logits = working_precision(product(hidden.to(self.product_dtype), weight.T))
        if bias is not None:
            logits = logits + bias
        slope = None
        if self.softcap is not None:
            bounded = torch.tanh(logits.div_(self.softcap))
            slope = 1 - bounded.square()
            logits = bounded * self.softcap
        return (logits if self.temperature == 1 else logits.div_(self.temperature)), slope

    def back(self, gradient: Tensor, slope: Tensor | None) -> Tensor:
        """Return the gradient of the output of the linear layer, from the gradient of the scaled logits."""
        if self.temperature != 1:
            gradient = gradient.div_(self.temperature)
        return gradient if slope is None else gradient.mul_(slope)


class _LinearLogProbs(torch.autograd.Function):
    """Autograd function from rows of `hidden` to log-probabilities and entropies; see `linear_log_probs`."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        head: _Head,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = hidden.shape[0]
        precision = torch.promote_types(head.product_dtype, torch.float32)
        log_probs, entropy, normalizer = (hidden.new_zeros(rows, dtype=precision) for _ in range(3))
        columns = weight.to(head.product_dtype)
        for start in range(0, rows, chunk_size):
            chunk = slice(start, start + chunk_size)
            logits, _ = head.logits(hidden[chunk], columns, bias)
            normalizer[chunk] = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(-1, targets[chunk].unsqueeze(-1)).squeeze(-1)
            log_probs[chunk] = chosen - normalizer[chunk]
            if with_entropy:
                centered = logits.sub_(normalizer[chunk].unsqueeze(-1))
                entropy[chunk] = -(centered.exp() * centered).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, bias, normalizer, entropy)
        ctx.head, ctx.chunk_size = head, chunk_size
        ctx.set_materialize_grads(False)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, normalizer, entropy = ctx.saved_tensors
        head, (of_log_probs, of_entropy) = ctx.head, gradients
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        if of_log_probs is None:
            of_log_probs = torch.zeros_like(normalizer)
        columns = weight.to(head.product_dtype)
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight, dtype=normalizer.dtype) if needs_weight else None
        to_bias = torch.zeros_like(bias, dtype=normalizer.dtype) if needs_bias else None
        for start in range(0, hidden.shape[0], ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            log_p, slope = head.logits(hidden[chunk], columns, bias)
            log_p = log_p.sub_(normalizer[chunk].unsqueeze(-1))
            factor = -of_log_probs[chunk].unsqueeze(-1)
            if of_entropy is None:
                gradient = log_p.exp_().mul_(factor)
            else:
                slopes = of_entropy[chunk].unsqueeze(-1)
                gradient = log_p.exp() * (factor - slopes * (log_p + entropy[chunk].unsqueeze(-1)))
            gradient.scatter_add_(-1, targets[chunk].unsqueeze(-1), of_log_probs[chunk].unsqueeze(-1))
            gradient = head.back(gradient, slope)
            if to_bias is not None:
                to_bias += gradient.sum(dim=0)
            rounded = gradient.to(head.product_dtype)
            if to_hidden is not None:
                to_hidden[chunk] = product(rounded, columns).to(hidden.dtype)
            if to_weight is not None:
                _add_product(to_weight, rounded.T, hidden[chunk].to(head.product_dtype))
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None,
            None if to_bias is None else to_bias.to(bias.dtype),
            *(None,) * 3,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total` in place; `total` may have a higher precision."""
    if total.dtype == left.dtype and not total.is_cpu:
        total.addmm_(left, right)
    else:
        total += product(left, right)


def _token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    chunk_size: int | None,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"`targets` has shape {tuple(targets.shape)}, but `hidden` has {tuple(hidden.shape)}; pass one target for "
            "each hidden state."
        )
    sizes = bind_shapes(
        hidden=(hidden.reshape(-1, hidden.shape[-1]), "token hidden"), weight=(weight, "vocabulary hidden")
    )
    if bias is not None:
        bind_shapes(weight=(weight, "vocabulary hidden"), bias=(bias, "vocabulary"))
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}; pass a positive number, 1.0 for the model itself.")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"`softcap` is {softcap}; pass a positive number, or None for none.")
    if chunk_size is None:
        chunk_size = max(_LOGITS_AT_A_TIME // sizes["vocabulary"], _TOKENS_AT_LEAST)
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}; pass 1 or more tokens.")
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind)
    product_dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(hidden.dtype, weight.dtype)
    rows, chosen = rearrange(hidden, "... hidden -> (...) hidden"), targets.reshape(-1)
    with torch.autocast(kind, enabled=False):
        found = _LinearLogProbs.apply(
            rows, weight, chosen, bias, _Head(temperature, softcap, product_dtype), chunk_size, with_entropy
        )
    log_probs, entropy = (values.reshape(targets.shape) for values in found)
    return log_probs, entropy
