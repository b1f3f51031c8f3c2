"""Context that every part of an objective receives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aggregate_po.corrections import CorrectionWeights
from aggregate_po.masked import divisor, masked_length, masked_sum
from aggregate_po.shapes import PerCompletion, PerToken
from aggregate_po.spans import checked_span_ids
from aggregate_po.totals import StepTotals
from aggregate_po.transitions import checked_divergence, checked_scale
from aggregate_po.weights import checked_weights


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
        divergence: divergence of each denoising step, with its graph; None without, and after the mean.
        scale: standard deviation of each step's transition; None without, after a prefix aggregate, and after the mean.
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
    divergence: PerToken | None = None
    scale: PerToken | None = None

    @classmethod
    def of(
        cls,
        log_ratio: PerToken,
        response_mask: PerToken | None = None,
        advantages: PerCompletion | PerToken | None = None,
        totals: StepTotals | None = None,
        mean_weights: PerToken | None = None,
        span_ids: PerToken | None = None,
        divergence: PerToken | None = None,
        scale: PerToken | None = None,
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
            divergence=checked_divergence("divergence", mask, divergence),
            scale=checked_scale(mask, scale),
        )

    @property
    def positions(self) -> Tensor:
        """Position of each token among the response tokens, from 1; after the mean, the length; never 0."""
        positions = self.lengths if self.log_ratio.ndim == 1 else self.response_mask.cumsum(dim=-1)
        return divisor(positions).to(self.log_ratio.dtype)

    def required(self, name: str, reader: object) -> Tensor:
        """Return the field of this name of each token, for a part that reads it.

        Raises:
            ValueError: the field is None, as after the mean, or as `scale` is after a prefix aggregate.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            kind, after = type(reader).__name__, self.log_ratio.ndim == 1
            remedy = (
                "pass it as `token_transform`" if after else f"pass `PolicyBatch(..., {name}=...)`, and no `prefix`"
            )
            raise ValueError(
                f"`{name}` is None{' after the mean' if after else ''}, but {kind} reads it of each token; {remedy}."
            )
        return value

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
