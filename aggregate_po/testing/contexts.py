"""Rearranged contexts and batches, and comparisons of the results on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from aggregate_po.batch import PolicyBatch
from aggregate_po.gradient_weights import GradientWeights
from aggregate_po.masked import divisor
from aggregate_po.objective import PolicyObjective
from aggregate_po.testing.reports import LawBroken, require, require_close, require_form, scale
from aggregate_po.token_ratios import TokenRatios

Context = TypeVar("Context", TokenRatios, PolicyBatch)


def some_rows(context: Context, rows: Any, **changes: Any) -> Context:
    """Return some completions, with the totals of the whole step unless others are given."""
    chosen: dict[str, Any] = {name: value[rows] for name, value in vars(context).items() if isinstance(value, Tensor)}
    return replace(context, **(chosen | changes))


def with_tokens(context: Context, change: Callable[[Tensor], Tensor]) -> Context:
    """Apply a function to every field that has one entry per token."""
    per_token: dict[str, Any] = {
        name: change(value)
        for name, value in vars(context).items()
        if isinstance(value, Tensor)
        and value.shape == context.response_mask.shape
        and value.ndim == 2
        # With one token, per-completion and per-token advantages have the same shape; both broadcast.
        and not (name == "advantages" and value.shape[-1] == 1)
    }
    return replace(context, **per_token)


def with_group_terms(objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch) -> PolicyBatch:
    """Return a batch of whole groups with the terms of the group objective, if there is one, ready to be split."""
    if objective.group_objective is None:
        return batch
    terms = objective.group_terms(objective.completion_values(log_probs, batch))
    return replace(batch, group_values=terms.values, group_advantages=terms.advantages)


def repeated(tokens: TokenRatios, counts: Tensor) -> TokenRatios:
    """Return the context in which each token is there as many times as `counts` says, up to 3; shape `batch time`."""
    copies = with_tokens(tokens, lambda values: values.repeat_interleave(3, dim=-1))
    kept = torch.arange(3).repeat(counts.shape[-1]) < counts.repeat_interleave(3, dim=-1)
    mask = copies.response_mask & kept
    return replace(copies, response_mask=mask, lengths=mask.sum(dim=-1))


def with_mean_weights(tokens: TokenRatios, weights: Tensor | None) -> TokenRatios:
    """Return the context with other weights of its tokens."""
    given = TokenRatios.of(tokens.log_ratio, tokens.response_mask, mean_weights=weights)
    names = ("response_mask", "lengths", "mean_weights")
    fewer: dict[str, Any] = {name: getattr(given, name) for name in names}
    return replace(tokens, **fewer, saturated=tokens.saturated & given.response_mask)


def with_junk(ratios: TokenRatios, junk: float) -> TokenRatios:
    """Write `junk` on padding; after the mean, on completions without tokens."""
    names = ["log_ratio", "raw_log_ratio", "old_log_probs"]
    names += [name for name in ("divergence", "scale") if getattr(ratios, name) is not None]
    mask = ratios.response_mask
    dirty: dict[str, Any] = {name: torch.where(mask, getattr(ratios, name), junk) for name in names}
    return replace(ratios, **dirty)


def in_precision(ratios: TokenRatios, dtype: torch.dtype) -> TokenRatios:
    """Return the context with its floating-point tensors in another precision."""
    moved: dict[str, Any] = {
        name: value.to(dtype)
        for name, value in vars(ratios).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return replace(ratios, **moved)


def copied(value: Any) -> Any:
    """Return a deep copy of inputs in plain containers; in inference mode, a copy of inference tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: copied(getattr(value, field.name)) for field in fields(value)})
    return value


def require_untouched(name: str, value: Any, before: Any) -> None:
    """Fail if tensors of an input differ from those of its earlier copy."""
    if isinstance(value, Tensor):
        require_close(f"`{name}` afterwards", value, before, where=~(value.isnan() & before.isnan()))
        if value.requires_grad:
            raise LawBroken(f"`{name}` requires gradient afterwards")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            require_untouched(f"{name}.{field.name}", getattr(value, field.name), getattr(before, field.name))


def require_joint(
    evaluated: object, separate: dict[str, Tensor], inputs: Tensor, rounding: float, where: Tensor
) -> None:
    """Fail unless the result of `evaluate` equals the results of the separate methods of a part.

    Args:
        evaluated: result of `evaluate`.
        separate: results of the separate methods by field name; the first is the value, which is in the graph.
        inputs: tensor that requires gradient, from which both were computed.
        rounding: tolerance, relative to the size of a result or to 1.
        where: True on the entries to compare, of `inputs` and of results of its shape.
    """
    value, *detached = separate
    for name, expected in separate.items():
        actual = getattr(evaluated, name)
        require_form(f"`{name}` of evaluate", actual, tuple(expected.shape), expected.dtype)
        counted = where if actual.shape == where.shape else None
        allowed = rounding * scale(expected.double())
        require_close(f"`{name}` of evaluate", actual.detach(), expected.detach(), allowed, counted)
    attached = [name for name in detached if getattr(evaluated, name).requires_grad]
    require(not attached, f"results of evaluate require gradient: {', '.join(attached)}")
    gradient, expected = (_gradient(tensor, inputs) for tensor in (getattr(evaluated, value), separate[value]))
    require_close(f"gradient of `{value}` of evaluate", gradient, expected, rounding * scale(expected), where)


def _gradient(values: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of the sum by autograd, 0 for constants."""
    if not values.requires_grad:
        return torch.zeros_like(inputs)
    return torch.autograd.grad(values.sum(), inputs, materialize_grads=True)[0]


def differentiate(
    objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch
) -> tuple[Tensor, Tensor, GradientWeights]:
    """Return the value, the gradient by autograd, and the closed-form weights in factors."""
    inputs = log_probs.detach().clone().requires_grad_()
    value = objective(inputs, batch)
    if not value.requires_grad:
        raise LawBroken("the objective lets no gradient through to the log-probabilities")
    (gradient,) = torch.autograd.grad(value, inputs, materialize_grads=True)
    return value.detach(), gradient, objective.gradient_weights(log_probs, batch)


def scale_of(weights: GradientWeights) -> Tensor:
    """Return the magnitude of the terms of a completion's weights before the gate; shape `(batch, 1)`."""
    shared = weights.completion * weights.advantages * weights.magnitude * weights.concentration
    return shared.abs().amax(dim=-1, keepdim=True) + weights.penalty.abs().amax(dim=-1, keepdim=True)


def require_gradient(objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch, rounding: float) -> None:
    """Fail unless the closed-form weights of an objective equal its gradient."""
    _, gradient, weights = differentiate(objective, log_probs, batch)
    mask = batch.response_mask
    # A large cost may have a small derivative, which inherits the rounding error of the cost.
    costs = [penalty.token_costs(torch.where(mask, log_probs.detach(), 0), batch) for penalty in objective.penalties]
    cost = sum((torch.where(mask, cost.abs(), 0) for cost in costs), torch.zeros_like(gradient))
    counts = mask.to(gradient.dtype) if batch.mean_weights is None else batch.mean_weights
    shares = weights.completion * counts / divisor(counts.sum(dim=-1, keepdim=True))
    allowed = rounding * (scale_of(weights) + gradient.abs() + shares * cost)
    require_close("total weights (expected: gradient by autograd)", weights.total, gradient, allowed)


def require_additive(
    objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch, boundary: int, rounding: float
) -> None:
    """Fail unless an objective and its gradient stay the same when the step is split in two at a completion."""
    value, gradient, weights = differentiate(objective, log_probs, batch)
    parts = [slice(0, boundary), slice(boundary, None)]
    micro_batches = [differentiate(objective, log_probs[rows], some_rows(batch, rows)) for rows in parts]
    allowed = rounding * scale_of(weights)
    gradients = torch.cat([micro_batch[1] for micro_batch in micro_batches])
    require_close("gradient in micro-batches", gradients, gradient, allowed)
    total = torch.cat([micro_batch[2].total for micro_batch in micro_batches])
    require_close("total weights in micro-batches", total, weights.total, allowed)
    size = (weights.completion * weights.advantages * weights.magnitude).abs().sum() + value.abs()
    summed = torch.stack([micro_batch[0] for micro_batch in micro_batches]).sum()
    require_close("value in micro-batches", summed, value, rounding * size)
