"""Intermediate results of one pass through the parts of an objective, with the value and the weights they imply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.aggregators.base import TokenAggregator, shares_of
from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.checks import require_comparable, require_one_ratio, require_weights_taken, required_groups
from aggregate_po.gradient_weights import GradientWeights
from aggregate_po.group_objectives import CompletionValues, GroupObjective, GroupTerms, group_terms
from aggregate_po.masked import divisor, masked_length, masked_sum
from aggregate_po.normalizers import Normalizer
from aggregate_po.prefixes import PrefixAggregate
from aggregate_po.shapes import bind_shapes, require_shape
from aggregate_po.suffixes import SuffixWeight
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import EvaluatedTransform, RatioTransform, evaluated
from aggregate_po.transitions import bounded_divergence


class Parts(Protocol):
    """The parts of an objective that a batch runs through; `PolicyObjective` documents each."""

    aggregator: TokenAggregator
    prefix: PrefixAggregate | None
    suffix_weight: SuffixWeight | None
    token_transform: RatioTransform | None
    sequence_transform: RatioTransform | None
    group_objective: GroupObjective | None
    normalizer: Normalizer


@dataclass(frozen=True)
class TokenTrace:
    """Intermediate results up to the input of the aggregator; shapes `batch time`.

    Args:
        batch: the completions.
        log_probs: log-probabilities under the trained policy, in working precision, 0 on padding.
        within: True where the log ratio is inside the bound, before and after the prefix aggregate.
        entering: context of the token transform.
        transform: result of the token transform; the identity if there is none.
        tokens: context of the aggregator.
        has_token_advantages: whether each token has an advantage of its own, from the batch or by a suffix weight.
    """

    batch: PolicyBatch
    log_probs: PerToken
    within: PerToken
    entering: TokenRatios
    transform: EvaluatedTransform
    tokens: TokenRatios
    has_token_advantages: bool


@dataclass(frozen=True)
class Trace:
    """Intermediate results up to the log value of each completion; shapes `batch` unless stated.

    Args:
        before: results up to the input of the aggregator.
        transform: result of the sequence transform; the identity if there is none.
        log_values: log value of each completion.
        concentration: token weights of the aggregator, for per-token advantages only; detached; shape `batch time`.
        completion: weight of each completion.
        group: terms of the group objective; None without one.
    """

    before: TokenTrace
    transform: EvaluatedTransform
    log_values: PerCompletion
    concentration: PerToken | None
    completion: PerCompletion
    group: GroupTerms | None = None

    def value(self, token_costs: Sequence[PerToken]) -> Tensor:
        """Return the objective, a scalar: the weighted sum over completions minus the average cost of each penalty."""
        values = self._advantage_weighted() if self.group is None else self._group_weighted(self.group)
        objective = (self.completion * values).sum()
        for costs in token_costs:
            objective = objective - self._average(costs)
        return objective

    @torch.no_grad()
    def weights(self, concentration: PerToken, token_derivatives: Sequence[PerToken]) -> GradientWeights:
        """Return the gradient of `value` in factors.

        Args:
            concentration: token weights of the aggregator.
            token_derivatives: derivatives of the costs of each penalty.
        """
        before, mask, kept = self.before, self.before.batch.response_mask, self.before.batch.correction.kept
        gate = before.within.to(before.log_probs.dtype) * before.transform.derivative
        if kept is not None:
            gate = gate * kept
        advantages, finite = before.entering.advantages.detach(), self.log_values <= MAX_LOG_RATIO
        magnitude = self.log_values.clamp(max=MAX_LOG_RATIO).exp() * self.transform.derivative
        if self.group is not None:
            advantages, finite = rearrange(self.group.advantages, "batch -> batch 1"), torch.ones_like(finite)
            magnitude = self.transform.derivative
        overflow = mask & ~(before.within & rearrange(finite, "batch -> batch 1"))
        clipped = before.tokens.saturated | rearrange(self.transform.saturated, "batch -> batch 1")
        penalty = torch.zeros_like(before.log_probs)
        for derivatives in token_derivatives:
            penalty = penalty - self._cost_weights * derivatives
        if before.tokens.mean_weights is not None:
            penalty = before.tokens.mean_weights * penalty
        return GradientWeights(
            completion=rearrange(self.completion, "batch -> batch 1"),
            advantages=advantages,
            magnitude=rearrange(torch.where(finite, magnitude, 0), "batch -> batch 1"),
            concentration=concentration,
            gate=torch.where(mask, gate, 0),
            penalty=torch.where(mask, penalty, 0),
            clipped=mask & clipped & ~overflow,
            overflow=overflow,
        )

    def averages(self, observed: Sequence[PerToken]) -> Tensor:
        """Return the average of each observation, weighted as the costs are; shape `(penalties,)`."""
        averages = [self._average(per_token) for per_token in observed]
        return torch.stack(averages) if averages else self.completion.new_zeros(0)

    @property
    def completion_values(self) -> CompletionValues:
        """The values that a group objective reads of each completion."""
        entering = self.before.entering
        return CompletionValues(
            log_values=self.log_values.detach().double(),
            old_log_probs=masked_sum(entering.old_log_probs.double(), entering.response_mask, entering.mean_weights),
            advantages=entering.advantages.squeeze(-1).detach().double(),
            weights=self.completion.detach().double(),
            groups=required_groups(self.before.batch),
        )

    @property
    def _cost_weights(self) -> Tensor:
        """Weight of one token's cost: the weight of the completion over its length; shape `(batch, 1)`."""
        return rearrange(self.completion / divisor(self.before.entering.lengths), "batch -> batch 1")

    def _average(self, per_token: PerToken) -> Tensor:
        """Return the contribution of this batch to the average of a cost over the optimizer step."""
        tokens = self.before.tokens
        return masked_sum(self._cost_weights * per_token, tokens.response_mask, tokens.mean_weights).sum()

    def _advantage_weighted(self) -> PerCompletion:
        """Return value times advantage of each completion; with per-token advantages, the sum over tokens (eq. 19)."""
        advantages, magnitude = self.before.entering.advantages, self.log_values.clamp(max=MAX_LOG_RATIO).exp()
        if self.concentration is None:
            return advantages.squeeze(-1) * magnitude
        # The bound applies to the value of the completion, so all its terms lose their gradient together.
        within = rearrange(self.log_values <= MAX_LOG_RATIO, "batch -> batch 1")
        log_ratio = torch.where(within, self.before.tokens.log_ratio, 0)
        moved = self.concentration * (log_ratio - log_ratio.detach())
        terms = shares_of(self.concentration, self.before.entering) + moved
        return magnitude.detach() * masked_sum(advantages * terms, self.before.batch.response_mask)

    def _group_weighted(self, group: GroupTerms) -> PerCompletion:
        """Return the value of each completion's group; the gradient is that of the group objective (eq. 56)."""
        return group.values + group.advantages * (self.log_values - self.log_values.detach())


def trace_tokens(parts: Parts, log_probs: PerToken, batch: PolicyBatch) -> TokenTrace:
    """Run a batch through the parts of an objective that act on tokens, up to the input of the aggregator."""
    bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
    if parts.sequence_transform is not None:
        require_one_ratio("sequence_transform", parts.sequence_transform, batch)
    if parts.group_objective is not None:
        require_comparable(parts.group_objective, batch)
    require_weights_taken(parts, batch)
    mask = batch.response_mask
    # Convert once, so that a gradient in half precision is rounded once.
    log_probs = torch.where(mask, working_precision(log_probs), 0)
    raw = log_ratio_of(log_probs, batch.old_log_probs, mask)
    log_ratio, within = bounded(raw), raw.detach().abs() <= MAX_LOG_RATIO
    advantages = batch.advantages.to(log_ratio.dtype)
    weights = None if batch.mean_weights is None else batch.mean_weights.to(log_ratio.dtype)
    entering = TokenRatios(
        log_ratio=log_ratio,
        raw_log_ratio=log_ratio.detach(),
        response_mask=mask,
        saturated=torch.zeros_like(mask),
        lengths=masked_length(mask, weights),
        old_log_probs=batch.old_log_probs,
        advantages=advantages if batch.has_token_advantages else rearrange(advantages, "batch -> batch 1"),
        totals=batch.totals,
        mean_weights=weights,
        span_ids=batch.span_ids,
        divergence=bounded_divergence(batch.divergence, within, log_ratio.dtype),
        scale=None if batch.scale is None else batch.scale.to(log_ratio.dtype),
    )
    if parts.suffix_weight is not None:
        entering = replace(entering, advantages=entering.advantages * parts.suffix_weight(entering))
    if parts.prefix is not None:
        aggregated = parts.prefix(entering)
        within = within & (aggregated.detach().abs() <= MAX_LOG_RATIO)
        entering = replace(entering, log_ratio=bounded(aggregated), scale=None)  # `scale` is that of one step
    transform = EvaluatedTransform.identity(entering.log_ratio)
    if parts.token_transform is not None:
        transform = evaluated(parts.token_transform, entering)
    return TokenTrace(
        batch=batch,
        log_probs=log_probs,
        within=within,
        entering=entering,
        transform=transform,
        tokens=entering.transformed(transform.value, transform.saturated).corrected(batch.correction),
        has_token_advantages=batch.has_token_advantages or parts.suffix_weight is not None,
    )


def trace_completions(
    parts: Parts, before: TokenTrace, log_aggregate: PerCompletion, token_weights: PerToken | None = None
) -> Trace:
    """Run what the aggregator returned through the parts that act on completions; per-token advantages read weights."""
    batch, lengths, dtype = before.batch, before.entering.lengths, before.log_probs.dtype
    require_shape(parts.aggregator, "log_aggregate", log_aggregate, "batch", lengths.shape)
    log_values = torch.where(lengths > 0, log_aggregate, 0)
    transform = EvaluatedTransform.identity(log_values)
    if parts.sequence_transform is not None:
        transform = evaluated(parts.sequence_transform, before.entering.after_mean(log_values))
        log_values = transform.value
    if batch.correction.log_sequence is not None:
        log_weights = batch.correction.log_sequence.to(dtype)
        log_values = log_values + log_weights
    # Use the working precision: dividing integer counts gives single precision.
    weights = parts.normalizer(lengths.to(dtype), batch.totals).to(dtype)
    require_shape(parts.normalizer, "__call__", weights, "batch", lengths.shape)
    concentration = token_weights if before.has_token_advantages else None
    return Trace(before, transform, log_values, concentration, completion=torch.where(lengths > 0, weights, 0))


def trace_groups(objective: GroupObjective | None, trace: Trace) -> Trace:
    """Add the group terms of the batch, or those of its own completions if it has none, which are whole groups then."""
    if objective is None:
        return trace
    batch, dtype = trace.before.batch, trace.log_values.dtype
    if batch.group_values is not None and batch.group_advantages is not None:
        terms = GroupTerms(batch.group_values, batch.group_advantages)
    else:
        terms = group_terms(objective, trace.completion_values)
    return replace(trace, group=GroupTerms(*(term.to(dtype) for term in terms)))
