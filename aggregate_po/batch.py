"""Inputs of an objective and of its parts: the batch, and the log-ratio context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aggregate_po.corrections import CorrectionWeights
from aggregate_po.masked import divisor, masked_length, masked_sum
from aggregate_po.shapes import PerCompletion, PerToken, bind_shapes
from aggregate_po.spans import checked_span_ids
from aggregate_po.totals import StepTotals
from aggregate_po.weights import checked_weights

_NO_CORRECTION = CorrectionWeights()


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

    Values on padding are replaced by zero, and so are the advantage and the correction of an empty completion.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes disagree, a weight is negative, not finite or too large, or spans are not integers from 0.
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

    def __post_init__(self) -> None:
        per_token = {"response_mask": self.response_mask, "old_log_probs": self.old_log_probs}
        optional = {name: getattr(self, name) for name in ("ref_log_probs", "mean_weights", "span_ids")}
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
                filled[name] = torch.where(mask, getattr(self, name), 0)
        filled["advantages"] = torch.where(mask if self.has_token_advantages else mask.any(dim=-1), self.advantages, 0)
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
        """Return a copy with every tensor moved or cast by `Tensor.to`."""
        moved: dict[str, Any] = {
            name: value.to(*args, **kwargs) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        for name in ("groups", "span_ids"):  # half precision could not tell large numbers apart
            if getattr(self, name) is not None:
                moved[name] = getattr(self, name).to(moved["response_mask"].device, copy=True)
        return replace(self, **moved, correction=self.correction.map(lambda tensor: tensor.to(*args, **kwargs)))

    def select(self, rows: Tensor | slice, time: int | None = None) -> PolicyBatch:
        """Return some of the completions, truncated to `time` tokens, with the totals of the whole step."""

        def selected(tensor: Tensor) -> Tensor:
            return tensor[rows, :time] if tensor.ndim == 2 else tensor[rows]

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        fewer: dict[str, Any] = {name: selected(value) for name, value in tensors.items()}
        return replace(self, **fewer, correction=self.correction.map(selected))


@dataclass(frozen=True)
class TokenRatios:
    """Context that every part of an objective receives.

    Before the mean the tensors have shape `batch time`; after the mean they have shape `batch`.

    Args:
        log_ratio: log ratios, after all earlier parts.
        raw_log_ratio: log ratios before any transform; detached.
        response_mask: True on trained tokens; after the mean, True on completions that have at least one.
        saturated: True where an earlier transform has derivative zero.
        lengths: response tokens of each completion, or the sum of their weights; shape `batch`.
        old_log_probs: log-probabilities under the behavior policy; after the mean, their sum over the completion.
        advantages: advantages, which broadcast against `log_ratio`: shape `(batch, 1)` before the mean, or
            `(batch, time)` for per-token advantages; shape `(batch,)` after the mean.
        totals: counts over the optimizer step.
        log_correction: sampler correction included in `log_ratio`; None without a correction.
        mean_weights: weights of the tokens, 0 on padding; None counts every token once, and after the mean.
        span_ids: number of each token's span; None without spans, and after the mean.
    """

    log_ratio: Tensor
    raw_log_ratio: Tensor
    response_mask: Tensor
    saturated: Tensor
    lengths: PerCompletion
    old_log_probs: Tensor
    advantages: Tensor
    totals: StepTotals
    log_correction: Tensor | None = None
    mean_weights: PerToken | None = None
    span_ids: Tensor | None = None

    @classmethod
    def of(
        cls,
        log_ratio: PerToken,
        response_mask: PerToken | None = None,
        advantages: PerCompletion | PerToken | None = None,
        totals: StepTotals | None = None,
        mean_weights: PerToken | None = None,
        span_ids: PerToken | None = None,
    ) -> TokenRatios:
        """Return a context made from log ratios alone, to try a part by hand; shape `batch time`.

        Example:
            >>> from aggregate_po.aggregators import GeometricMean
            >>> GeometricMean().log_aggregate(TokenRatios.of(torch.tensor([[0.5, -0.5, 0.3]])))
            tensor([0.1000])
        """
        mask = torch.ones_like(log_ratio, dtype=torch.bool) if response_mask is None else response_mask.bool()
        mask, weights = checked_weights(mask, mean_weights)
        if advantages is None:
            advantages = log_ratio.new_ones(log_ratio.shape[:-1])
        filled = torch.where(mask, log_ratio, 0)
        return cls(
            log_ratio=filled,
            raw_log_ratio=filled.detach(),
            response_mask=mask,
            saturated=torch.zeros_like(mask),
            lengths=masked_length(mask, weights),
            old_log_probs=torch.zeros_like(filled),
            advantages=advantages if advantages.ndim == 2 else advantages.unsqueeze(-1),
            totals=StepTotals.of(mask, weights) if totals is None else totals,
            mean_weights=weights,
            span_ids=checked_span_ids(mask, span_ids),
        )

    @property
    def positions(self) -> Tensor:
        """Position of each token among the response tokens, from 1; after the mean, the length; never 0."""
        positions = self.lengths if self.log_ratio.ndim == 1 else self.response_mask.cumsum(dim=-1)
        return divisor(positions).to(self.log_ratio.dtype)

    def transformed(self, log_ratio: Tensor, saturated: Tensor) -> TokenRatios:
        """Return the context after a transform with result `log_ratio` and derivative zero where `saturated`."""
        return replace(self, log_ratio=log_ratio, saturated=self.saturated | (saturated & self.response_mask))

    def corrected(self, weights: CorrectionWeights) -> TokenRatios:
        """Return the context of the aggregator: log weights are added as constants, masked tokens have ratio one."""
        if weights.log_token is None and weights.kept is None:
            return self
        log_ratio = self.log_ratio
        if weights.log_token is not None:
            log_ratio = log_ratio + weights.log_token.to(log_ratio.dtype)
        if weights.kept is not None:
            log_ratio = torch.where(weights.kept, log_ratio, 0)
        return replace(self, log_ratio=log_ratio, log_correction=(log_ratio - self.log_ratio).detach())

    @property
    def uncorrected(self) -> Tensor:
        """Log ratios without the sampler correction, as exponent rules read them; detached."""
        log_ratio = self.log_ratio.detach()
        return log_ratio if self.log_correction is None else log_ratio - self.log_correction

    def after_mean(self, log_mean: PerCompletion) -> TokenRatios:
        """Return the context of a sequence transform; advantages must be per completion."""
        nonempty = self.lengths > 0
        return TokenRatios(
            log_ratio=log_mean,
            raw_log_ratio=log_mean.detach(),
            response_mask=nonempty,
            saturated=torch.zeros_like(nonempty),
            lengths=self.lengths,
            old_log_probs=masked_sum(self.old_log_probs, self.response_mask, self.mean_weights),
            advantages=self.advantages.squeeze(-1),
            totals=self.totals,
        )

    def requiring_grad(self) -> TokenRatios:
        """Return a detached copy whose `log_ratio` requires gradient, also from inference tensors.

        Call this with gradients enabled and inference mode off.
        """
        copies = _cloned(self)
        copies["log_ratio"].requires_grad_()
        return replace(self, **copies, totals=replace(self.totals, **_cloned(self.totals)))


def _cloned(fields: TokenRatios | StepTotals) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in vars(fields).items() if isinstance(value, Tensor)}


def _ndim(advantages: Any) -> int:
    return getattr(advantages, "ndim", 1)
