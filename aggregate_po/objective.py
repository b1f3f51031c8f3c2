"""The objective: transform, aggregate, transform, normalise; and its gradient weights as five readable factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch, TokenRatios, bind_shapes
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.normalizers import Normalizer, SequenceMean
from aggregate_po.penalties import Penalty
from aggregate_po.transforms.base import RatioTransform


@dataclass(frozen=True)
class GradientWeights:
    """Weight of each token on the gradient of its log-probability, in factors (eq. 4).

    Every factor broadcasts against `batch time`: those of a completion have shape `(batch, 1)`.

    Args:
        completion: normaliser's weight of the completion.
        advantages: advantage of the completion.
        magnitude: value of the completion times the derivative of the sequence transform.
        concentration: share of the completion's gradient that each token receives.
        gate: derivative of the token transform.
        penalty: weight that the penalties add.
        clipped: True where a clip made the gradient zero.
        overflow: True where the bound on log ratios made the gradient zero.
    """

    completion: Tensor
    advantages: Tensor
    magnitude: Tensor
    concentration: PerToken
    gate: PerToken
    penalty: PerToken
    clipped: Tensor | None = None
    overflow: Tensor | None = None

    @property
    def total(self) -> PerToken:
        """Gradient of the objective with respect to `log_probs`; shape `batch time`."""
        product = self.completion * self.advantages * self.magnitude * self.concentration * self.gate
        return product + self.penalty


@dataclass(frozen=True)
class _Trace:
    """One pass through the parts, up to the log value of each completion."""

    log_probs: PerToken  # working precision, 0 on padding
    within: PerToken  # log ratios inside the bound
    entering: TokenRatios  # what the token transform sees
    tokens: TokenRatios  # what the aggregator sees
    sequences: TokenRatios  # what the sequence transform sees
    log_values: PerCompletion
    completion: PerCompletion


class PolicyObjective:
    r"""Token aggregation as an objective to be maximised, $J = \sum_i c_i A_i S_i$ (eq. 3), less any penalties.

    Args:
        aggregator: reduces the token log ratios of a completion to one.
        token_transform: applied to the log ratio of each token, before the mean.
        sequence_transform: applied to the log ratio of each completion, after the mean.
        normalizer: weight of each completion, from the totals of the optimiser step.
        penalties: costs taken off the objective.

    Raises:
        TypeError: a part is of the wrong kind.

    Log ratios are bounded to +-20 where they enter and the log value to at most 20, so every finite input gives finite
    value, weights and gradient; the gradient beyond is zero, and counted as overflow.

    Example:
        >>> from aggregate_po import GeometricMean, PessimisticClip, PolicyBatch
        >>> objective = PolicyObjective(GeometricMean(), PessimisticClip.log(0.4, 0.4))
        >>> batch = PolicyBatch(torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1))
        >>> objective(torch.tensor([[0.1, 0.2, 0.9]]), batch).log()
        tensor(0.2333)
    """

    def __init__(
        self,
        aggregator: TokenAggregator,
        token_transform: RatioTransform | None = None,
        sequence_transform: RatioTransform | None = None,
        normalizer: Normalizer = SequenceMean(),
        penalties: Sequence[Penalty] = (),
    ) -> None:
        _require("aggregator", aggregator, TokenAggregator)
        _require("normalizer", normalizer, Normalizer)
        if token_transform is not None:
            _require("token_transform", token_transform, RatioTransform)
        if sequence_transform is not None:
            _require("sequence_transform", sequence_transform, RatioTransform)
        for penalty in penalties:
            _require("penalties", penalty, Penalty)
        self.aggregator = aggregator
        self.token_transform = token_transform
        self.sequence_transform = sequence_transform
        self.normalizer = normalizer
        self.penalties = tuple(penalties)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part!r}" for name, part in vars(self).items() if part is not None and part != ())
        return f"PolicyObjective({parts})"

    @property
    def needs_reference(self) -> bool:
        """Whether any penalty reads `batch.ref_log_probs`."""
        return any(penalty.needs_reference for penalty in self.penalties)

    def __call__(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Value of the objective, a scalar attached to the graph of `log_probs`.

        Args:
            log_probs: log-probabilities under the policy that is trained; shape `batch time`; nats.
            batch: the completions.

        Raises:
            ValueError: shapes disagree, or a penalty misses the reference log-probabilities.
        """
        trace = self._trace(log_probs, batch)
        values = trace.log_values.clamp(max=MAX_LOG_RATIO).exp()
        objective = (trace.completion * trace.sequences.advantages * values).sum()
        shares = self._penalty_shares(trace, batch)
        for penalty in self.penalties:
            costs = shares * penalty.token_costs(trace.log_probs, batch)
            objective = objective - torch.where(batch.response_mask, costs, 0).sum()
        return objective

    @torch.no_grad()
    def gradient_weights(self, log_probs: PerToken, batch: PolicyBatch) -> GradientWeights:
        """Closed-form gradient of the objective with respect to `log_probs`, in factors.

        Takes what `__call__` takes and raises what it raises; nothing is attached to the graph.
        """
        trace = self._trace(log_probs, batch)
        mask = batch.response_mask
        log_ratio = trace.entering.log_ratio
        gate = trace.within.to(log_ratio.dtype)
        if self.token_transform is not None:
            gate = gate * self.token_transform.derivative(trace.entering)
        completion_clipped = torch.zeros_like(trace.sequences.response_mask)
        magnitude = trace.log_values.clamp(max=MAX_LOG_RATIO).exp()
        if self.sequence_transform is not None:
            magnitude = magnitude * self.sequence_transform.derivative(trace.sequences)
            completion_clipped = self.sequence_transform.saturated(trace.sequences)
        finite = trace.log_values <= MAX_LOG_RATIO
        overflow = mask & ~(trace.within & rearrange(finite, "batch -> batch 1"))
        clipped = trace.tokens.saturated | rearrange(completion_clipped, "batch -> batch 1")
        concentration = self.aggregator.token_weights(trace.tokens)
        _require_shape(self.aggregator, "token_weights", concentration, "batch time", mask.shape)
        shares = self._penalty_shares(trace, batch)
        penalty = torch.zeros_like(log_ratio)
        for part in self.penalties:
            penalty = penalty - shares * part.token_derivatives(trace.log_probs, batch)
        return GradientWeights(
            completion=rearrange(trace.completion, "batch -> batch 1"),
            advantages=trace.entering.advantages,
            magnitude=rearrange(torch.where(finite, magnitude, 0), "batch -> batch 1"),
            concentration=concentration,
            gate=torch.where(mask, gate, 0),
            penalty=torch.where(mask, penalty, 0),
            clipped=mask & clipped & ~overflow,
            overflow=overflow,
        )

    def _trace(self, log_probs: PerToken, batch: PolicyBatch) -> _Trace:
        bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
        mask = batch.response_mask
        lengths = mask.sum(dim=-1)
        # Once, so that a gradient in half precision is rounded once.
        log_probs = torch.where(mask, working_precision(log_probs), 0)
        raw = log_ratio_of(log_probs, batch.old_log_probs, mask)
        log_ratio = bounded(raw)
        entering = TokenRatios(
            log_ratio=log_ratio,
            raw_log_ratio=log_ratio.detach(),
            response_mask=mask,
            saturated=torch.zeros_like(mask),
            lengths=lengths,
            old_log_probs=batch.old_log_probs,
            advantages=rearrange(batch.advantages.to(log_ratio.dtype), "batch -> batch 1"),
            totals=batch.totals,
        )
        tokens = _transformed(self.token_transform, entering)
        log_mean = self.aggregator.log_aggregate(tokens)
        _require_shape(self.aggregator, "log_aggregate", log_mean, "batch", lengths.shape)
        sequences = entering.after_mean(torch.where(lengths > 0, log_mean, 0))
        # In working precision, because counts that are divided as integers give single precision.
        weights = self.normalizer(lengths.to(log_ratio.dtype), batch.totals).to(log_ratio.dtype)
        _require_shape(self.normalizer, "__call__", weights, "batch", lengths.shape)
        return _Trace(
            log_probs=log_probs,
            within=raw.detach().abs() <= MAX_LOG_RATIO,
            entering=entering,
            tokens=tokens,
            sequences=sequences,
            log_values=_transformed(self.sequence_transform, sequences).log_ratio,
            completion=torch.where(lengths > 0, weights, 0),
        )

    def _penalty_shares(self, trace: _Trace, batch: PolicyBatch) -> Tensor:
        """Weight of one token's cost: the completion's, over its length; shape `(batch, 1)`."""
        return rearrange(trace.completion / trace.entering.lengths.clamp(min=1), "batch -> batch 1")


def _require(name: str, part: object, kind: type) -> None:
    if not isinstance(part, kind):
        raise TypeError(f"`{name}` is {part!r}; pass an instance of a subclass of aggregate_po.{kind.__name__}.")


def _transformed(transform: RatioTransform | None, ratios: TokenRatios) -> TokenRatios:
    if transform is None:
        return ratios
    transformed = transform(ratios)
    _require_shape(transform, "__call__", transformed, "that of `log_ratio`", ratios.log_ratio.shape)
    with torch.no_grad():
        saturated = transform.saturated(ratios) & ratios.response_mask
    return TokenRatios(**{**vars(ratios), "log_ratio": transformed, "saturated": saturated})


def _require_shape(part: object, method: str, result: Tensor, words: str, shape: torch.Size) -> None:
    """A result of another shape could broadcast, and mix completions without a word."""
    if result.shape != shape:
        raise ValueError(
            f"`{type(part).__name__}.{method}` returned shape {tuple(result.shape)}; return shape {words}, here "
            f"{tuple(shape)}."
        )
