"""Inputs of an objective: the completions of one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aggregate_po.corrections import CorrectionWeights
from aggregate_po.shapes import PerCompletion, PerToken, bind_shapes
from aggregate_po.spans import checked_span_ids
from aggregate_po.totals import StepTotals
from aggregate_po.transitions import checked_divergence, checked_scale
from aggregate_po.weights import checked_weights

_NO_CORRECTION = CorrectionWeights()
_OPTIONAL_PER_TOKEN = ("ref_log_probs", "mean_weights", "span_ids", "divergence", "scale", "ref_divergence")


@dataclass(frozen=True)
class PolicyBatch:
    """Completions of one micro-batch; the log-probabilities under the trained policy are passed separately.

    Args:
        old_log_probs: log-probabilities under the behavior policy; shape `batch time`.
        response_mask: True on trained tokens; prompts, padding and tool output are False; shape `batch time`.
        advantages: one per completion, shape `batch`; or one per token, shape `batch time`, for objectives that
            define it.
        totals: counts over the whole optimizer step; None counts this batch alone.
        ref_log_probs: log-probabilities under the reference policy, for KL penalties; shape `batch time`.
        correction: weights that correct for a sampler that differs from the behavior policy; none by default.
        groups: number of each completion's group, for a group objective; any integers, such as the index of the prompt
            in the step; shape `batch`.
        group_values: value of each completion's group, if the batch does not hold whole groups; with
            `group_advantages`, the `GroupTerms` of the completions; shape `batch`.
        group_advantages: derivative of that value by the completion's log value, see `GroupTerms`; shape `batch`.
        mean_weights: weights of the tokens in every mean, 0 or more, in any unit; a token of weight 0 is padding.
            Boolean weights narrow the mask. None counts every token once; shape `batch time`.
        span_ids: number of each token's span, such as a sentence, a step or a turn, for means over spans; integers, 0
            or more; shape `batch time`.
        divergence: divergence of each denoising step between the transitions of the trained and the behavior policy
            (eq. 61), averaged over latent dimensions as `log_probs` are, and with a graph as they have; nats; shape
            `batch time`.
        scale: standard deviation of each step's transition, positive; shape `batch time`.
        ref_divergence: divergence of each step from the transition of the reference policy, with its graph, for a
            penalty; nats; shape `batch time`.

    Values on padding are replaced by zero, and so are the advantage and the correction of an empty completion; a scale
    is replaced by one.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes disagree, a weight is negative, not finite or too large, spans are not integers from 0, a
            divergence is negative, or a scale not positive or too large.
    """

    old_log_probs: PerToken
    response_mask: PerToken
    advantages: PerCompletion | PerToken
    totals: StepTotals = None  # type: ignore[assignment]  # filled in below, so never None to a reader
    ref_log_probs: PerToken | None = None
    correction: CorrectionWeights = _NO_CORRECTION
    groups: PerCompletion | None = None
    group_values: PerCompletion | None = None
    group_advantages: PerCompletion | None = None
    mean_weights: PerToken | None = None
    span_ids: PerToken | None = None
    divergence: PerToken | None = None
    scale: PerToken | None = None
    ref_divergence: PerToken | None = None

    def __post_init__(self) -> None:
        per_token = {"response_mask": self.response_mask, "old_log_probs": self.old_log_probs}
        optional = {name: getattr(self, name) for name in _OPTIONAL_PER_TOKEN}
        per_token |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        per_group = {name: getattr(self, name) for name in ("groups", "group_values", "group_advantages")}
        bind_shapes(
            **{name: (tensor, "batch time") for name, tensor in per_token.items()},
            advantages=(self.advantages, "batch time" if _ndim(self.advantages) == 2 else "batch"),
            **{name: (tensor, "batch") for name, tensor in per_group.items() if tensor is not None},
            **self.correction.patterns(),
        )
        mask, weights = checked_weights(self.response_mask.bool(), self.mean_weights)
        filled: dict[str, Any] = {"response_mask": mask, "mean_weights": weights}
        for name in ("old_log_probs", "ref_log_probs"):
            if getattr(self, name) is not None:
                filled[name] = torch.where(mask, getattr(self, name).detach(), 0)
        counted = mask if self.has_token_advantages else mask.any(dim=-1)
        filled["advantages"] = torch.where(counted, self.advantages.detach(), 0)
        for name in ("divergence", "ref_divergence"):
            filled[name] = checked_divergence(name, mask, getattr(self, name))
        filled["scale"] = checked_scale(mask, self.scale)
        filled["span_ids"] = checked_span_ids(mask, self.span_ids)
        filled["correction"] = self.correction.on_tokens(mask)
        if self.totals is None:
            filled["totals"] = StepTotals.of(mask, weights)
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    @property
    def has_token_advantages(self) -> bool:
        """Whether each token has an advantage of its own."""
        return self.advantages.ndim == 2

    def to(self, *args: Any, **kwargs: Any) -> PolicyBatch:
        """Return a copy with every tensor moved or cast by `Tensor.to`; counts and numbers are moved alone."""
        moved: dict[str, Any] = {
            name: value.to(*args, **kwargs) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        device = moved["response_mask"].device
        for name in ("groups", "span_ids"):  # half precision could not tell large numbers apart
            if getattr(self, name) is not None:
                moved[name] = getattr(self, name).to(device, copy=True)
        correction = self.correction.map(lambda tensor: tensor.to(*args, **kwargs))
        return replace(self, **moved, correction=correction, totals=self.totals.on(device))

    def select(self, rows: Tensor | slice, time: int | None = None) -> PolicyBatch:
        """Return some of the completions, truncated to `time` tokens, with the totals of the whole step."""

        def selected(tensor: Tensor) -> Tensor:
            return tensor[rows, :time] if tensor.ndim == 2 else tensor[rows]

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        fewer: dict[str, Any] = {name: selected(value) for name, value in tensors.items()}
        return replace(self, **fewer, correction=self.correction.map(selected))


def _ndim(advantages: Any) -> int:
    return getattr(advantages, "ndim", 1)
