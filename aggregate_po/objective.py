"""Policy objective: transform, aggregate, transform, normalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.aggregators.base import EvaluatedAggregator, TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch, TokenRatios
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.gradient_weights import Evaluated, GradientWeights
from aggregate_po.normalizers import Normalizer, SequenceMean
from aggregate_po.penalties import Penalty
from aggregate_po.shapes import bind_shapes, require_shape
from aggregate_po.trace import TokenTrace, Trace
from aggregate_po.transforms.base import EvaluatedTransform, RatioTransform, evaluated


class PolicyObjective:
    r"""Policy objective $J = \sum_i c_i A_i S_i$ minus the penalties, to be maximized (eq. 3).

    Args:
        aggregator: Reduction of the token log ratios of a completion to one log ratio.
        token_transform: Transform of the log ratio of each token, before the mean.
        sequence_transform: Transform of the log ratio of each completion, after the mean.
        normalizer: Weight of each completion, from the totals of the optimizer step.
        penalties: Costs subtracted from the objective.

    Raises:
        TypeError: a part is of the wrong kind.

    Log ratios are clamped to +-20 on entry and log values to at most 20, so every finite input gives a finite value,
    finite weights and a finite gradient. Outside these bounds the gradient is zero and counted as overflow.

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

    @override
    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part!r}" for name, part in vars(self).items() if part is not None and part != ())
        return f"PolicyObjective({parts})"

    @property
    def needs_reference(self) -> bool:
        """Whether any penalty reads `batch.ref_log_probs`."""
        return any(penalty.needs_reference for penalty in self.penalties)

    def __call__(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Return the value of the objective, a scalar attached to the graph of `log_probs`.

        Args:
            log_probs: Log-probabilities under the trained policy; shape `batch time`; nats.
            batch: The completions.

        Raises:
            ValueError: shapes disagree, a part does not support per-token advantages or corrections, or a penalty
                needs reference log-probabilities that the batch lacks.
        """
        trace = self._trace(log_probs, batch)
        return trace.value([penalty.token_costs(trace.before.log_probs, batch) for penalty in self.penalties])

    @torch.no_grad()
    def gradient_weights(self, log_probs: PerToken, batch: PolicyBatch) -> GradientWeights:
        """Return the closed-form gradient of the objective with respect to `log_probs`, in factors.

        Arguments and errors are those of `__call__`; the result is detached.
        """
        trace, aggregate = self._trace_with_weights(log_probs, batch)
        derivatives = [penalty.token_derivatives(trace.before.log_probs, batch) for penalty in self.penalties]
        return trace.weights(aggregate.token_weights, derivatives)

    @torch.no_grad()
    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Return the observation of each penalty on this batch, averaged as its costs are; sum over a step for `adapt`.

        Arguments and errors are those of `__call__`; the result has one entry per penalty, in order, and is detached.
        """
        trace = self._trace(log_probs, batch)
        return trace.averages([penalty.observed(trace.before.log_probs, batch) for penalty in self.penalties])

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> Evaluated:
        """Return value, gradient weights and observations from one pass, without computing any part twice.

        The results equal those of `__call__`, `gradient_weights` and `observed`; arguments and errors are the same.

        Example:
            >>> from aggregate_po import ArithmeticMean, PolicyBatch
            >>> log_probs = torch.tensor([[0.0, 0.5]], requires_grad=True)
            >>> batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
            >>> evaluated = PolicyObjective(ArithmeticMean()).evaluate(log_probs, batch)
            >>> evaluated.value.backward()
            >>> torch.allclose(log_probs.grad, evaluated.weights.total)
            True
        """
        trace, aggregate = self._trace_with_weights(log_probs, batch)
        penalties = [penalty.evaluate(trace.before.log_probs, batch) for penalty in self.penalties]
        return Evaluated(
            value=trace.value([penalty.token_costs for penalty in penalties]),
            weights=trace.weights(aggregate.token_weights, [penalty.token_derivatives for penalty in penalties]),
            observed=trace.averages([penalty.observed for penalty in penalties]),
            exponents=aggregate.exponents,
        )

    def adapt(self, observed: Sequence[float]) -> None:
        """Let the penalties adapt to their observations; call this once after every optimizer step.

        Do not call it for a skipped step, such as one whose gradient is not finite.

        Args:
            observed: Sum of `observed` over the ranks and micro-batches of the step; one entry per penalty.

        Raises:
            ValueError: the number of entries differs from the number of penalties.
        """
        for penalty, average in zip(self.penalties, observed, strict=True):
            penalty.adapt(average)

    def state_dict(self) -> dict[str, Any]:
        """Return the adaptive state of the penalties."""
        return {"penalties": [penalty.state_dict() for penalty in self.penalties]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            ValueError: the state belongs to an objective with another number of penalties.
        """
        saved = state["penalties"]
        if len(saved) != len(self.penalties):
            raise ValueError(
                f"`state` has {len(saved)} penalties, but the objective has {len(self.penalties)}; resume with the "
                "objective that the state is of."
            )
        for penalty, own in zip(self.penalties, saved, strict=True):
            penalty.load_state_dict(own)

    def _trace(self, log_probs: PerToken, batch: PolicyBatch) -> Trace:
        """Run a batch through all parts, for the value only."""
        before = self._before_the_mean(log_probs, batch)
        return self._after_the_mean(before, self.aggregator.log_aggregate(before.tokens))

    def _trace_with_weights(self, log_probs: PerToken, batch: PolicyBatch) -> tuple[Trace, EvaluatedAggregator]:
        """Run a batch through all parts; also return the result of the aggregator, with its token weights."""
        before = self._before_the_mean(log_probs, batch)
        aggregate = self.aggregator.evaluate(before.tokens)
        trace = self._after_the_mean(before, aggregate.log_aggregate)
        require_shape(self.aggregator, "token_weights", aggregate.token_weights, "batch time", before.within.shape)
        return trace, aggregate

    def _before_the_mean(self, log_probs: PerToken, batch: PolicyBatch) -> TokenTrace:
        bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
        if self.sequence_transform is not None:
            self._require_one_ratio(batch)
        mask = batch.response_mask
        # Convert once, so that a gradient in half precision is rounded once.
        log_probs = torch.where(mask, working_precision(log_probs), 0)
        raw = log_ratio_of(log_probs, batch.old_log_probs, mask)
        log_ratio = bounded(raw)
        advantages = batch.advantages.to(log_ratio.dtype)
        entering = TokenRatios(
            log_ratio=log_ratio,
            raw_log_ratio=log_ratio.detach(),
            response_mask=mask,
            saturated=torch.zeros_like(mask),
            lengths=mask.sum(dim=-1),
            old_log_probs=batch.old_log_probs,
            advantages=advantages if batch.has_token_advantages else rearrange(advantages, "batch -> batch 1"),
            totals=batch.totals,
        )
        transform = EvaluatedTransform.identity(log_ratio)
        if self.token_transform is not None:
            transform = evaluated(self.token_transform, entering)
        return TokenTrace(
            batch=batch,
            log_probs=log_probs,
            within=raw.detach().abs() <= MAX_LOG_RATIO,
            entering=entering,
            transform=transform,
            tokens=entering.transformed(transform.value, transform.saturated).corrected(batch.correction),
        )

    def _after_the_mean(self, before: TokenTrace, log_aggregate: PerCompletion) -> Trace:
        batch, lengths, dtype = before.batch, before.entering.lengths, before.log_probs.dtype
        require_shape(self.aggregator, "log_aggregate", log_aggregate, "batch", lengths.shape)
        log_values = torch.where(lengths > 0, log_aggregate, 0)
        log_terms = self.aggregator.log_terms(before.tokens) if batch.has_token_advantages else None
        transform = EvaluatedTransform.identity(log_values)
        if self.sequence_transform is not None:
            transform = evaluated(self.sequence_transform, before.entering.after_mean(log_values))
            log_values = transform.value
        if batch.correction.log_sequence is not None:
            log_weights = batch.correction.log_sequence.to(dtype)
            log_values = log_values + log_weights
            log_terms = None if log_terms is None else log_terms + rearrange(log_weights, "batch -> batch 1")
        # Use the working precision: dividing integer counts gives single precision.
        weights = self.normalizer(lengths.to(dtype), batch.totals).to(dtype)
        require_shape(self.normalizer, "__call__", weights, "batch", lengths.shape)
        return Trace(before, transform, log_values, log_terms, completion=torch.where(lengths > 0, weights, 0))

    def _require_one_ratio(self, batch: PolicyBatch) -> None:
        """Raise for per-token advantages and corrections: a sequence transform has a definition for neither."""
        acts = f"which `sequence_transform` {self.sequence_transform!r} acts on"
        if batch.has_token_advantages:
            raise ValueError(
                f"`advantages` has shape `batch time`, but the ratio of a completion, {acts}, has no advantage per "
                "token; pass one advantage per completion, or give each token its completion's ratio "
                "(aggregate_po.transforms.CompletionRatio)."
            )
        if batch.correction.log_token is not None:
            raise ValueError(
                f"`correction` has a weight per token, but the ratio of a completion, {acts}, would be clipped with "
                "them; pass a SequenceCorrection, which multiplies what the clip leaves."
            )


def _require(name: str, part: object, kind: type) -> None:
    if not isinstance(part, kind):
        raise TypeError(f"`{name}` is {part!r}; pass an instance of a subclass of aggregate_po.{kind.__name__}.")
