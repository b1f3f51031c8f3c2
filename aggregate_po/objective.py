"""The objective: transform, aggregate, transform, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch, TokenRatios
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.gradient_weights import Evaluated, GradientWeights
from aggregate_po.normalizers import Normalizer, SequenceMean
from aggregate_po.penalties import Penalty
from aggregate_po.shapes import bind_shapes, require_shape
from aggregate_po.trace import TokenTrace, Trace
from aggregate_po.transforms.base import EvaluatedTransform, RatioTransform, evaluated


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
            ValueError: shapes disagree, an advantage or a correction per token meets a part that has no definition for
                it, or a penalty misses the reference log-probabilities.
        """
        trace = self._trace(log_probs, batch)
        return trace.value([penalty.token_costs(trace.before.log_probs, batch) for penalty in self.penalties])

    @torch.no_grad()
    def gradient_weights(self, log_probs: PerToken, batch: PolicyBatch) -> GradientWeights:
        """Closed-form gradient of the objective with respect to `log_probs`, in factors.

        Takes what `__call__` takes and raises what it raises; nothing is attached to the graph.
        """
        trace, concentration = self._trace_with_concentration(log_probs, batch)
        derivatives = [penalty.token_derivatives(trace.before.log_probs, batch) for penalty in self.penalties]
        return trace.weights(concentration, derivatives)

    @torch.no_grad()
    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Observation of each penalty on this batch, averaged as its costs are; the sum over a step is for `adapt`.

        Takes what `__call__` takes and raises what it raises; one number per penalty, in their order; detached.
        """
        trace = self._trace(log_probs, batch)
        return trace.averages([penalty.observed(trace.before.log_probs, batch) for penalty in self.penalties])

    def evaluate(self, log_probs: PerToken, batch: PolicyBatch) -> Evaluated:
        """Return value, gradient weights and observations from one pass, in which no part is computed twice.

        Takes what `__call__` takes and raises what it raises. The numbers are those of `__call__`, `gradient_weights`
        and `observed`; ask these where only one of the three is needed.

        Example:
            >>> from aggregate_po import ArithmeticMean, PolicyBatch
            >>> log_probs = torch.tensor([[0.0, 0.5]], requires_grad=True)
            >>> batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
            >>> evaluated = PolicyObjective(ArithmeticMean()).evaluate(log_probs, batch)
            >>> evaluated.value.backward()
            >>> torch.allclose(log_probs.grad, evaluated.weights.total)
            True
        """
        trace, concentration = self._trace_with_concentration(log_probs, batch)
        penalties = [penalty.evaluate(trace.before.log_probs, batch) for penalty in self.penalties]
        return Evaluated(
            value=trace.value([penalty.token_costs for penalty in penalties]),
            weights=trace.weights(concentration, [penalty.token_derivatives for penalty in penalties]),
            observed=trace.averages([penalty.observed for penalty in penalties]),
        )

    def adapt(self, observed: Sequence[float]) -> None:
        """Let the penalties adapt to what they observed, once after every optimiser step that was made.

        A step that was skipped, as for a gradient that is not finite, adapts nothing.

        Args:
            observed: sum of `observed` over the ranks and micro-batches of the step; one number per penalty.

        Raises:
            ValueError: there are more or fewer numbers than penalties.
        """
        for penalty, average in zip(self.penalties, observed, strict=True):
            penalty.adapt(average)

    def state_dict(self) -> dict[str, Any]:
        """What the penalties have changed since they were made."""
        return {"penalties": [penalty.state_dict() for penalty in self.penalties]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it was given by an objective with another number of penalties.
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
        """Send a batch through the parts, for the value alone."""
        before = self._before_the_mean(log_probs, batch)
        return self._after_the_mean(before, self.aggregator.log_aggregate(before.tokens))

    def _trace_with_concentration(self, log_probs: PerToken, batch: PolicyBatch) -> tuple[Trace, PerToken]:
        """Send a batch through the parts, and take the weights of the aggregator along."""
        before = self._before_the_mean(log_probs, batch)
        aggregate = self.aggregator.evaluate(before.tokens)
        trace = self._after_the_mean(before, aggregate.log_aggregate)
        require_shape(self.aggregator, "token_weights", aggregate.token_weights, "batch time", before.within.shape)
        return trace, aggregate.token_weights

    def _before_the_mean(self, log_probs: PerToken, batch: PolicyBatch) -> TokenTrace:
        bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
        if self.sequence_transform is not None:
            self._require_one_ratio(batch)
        mask = batch.response_mask
        # Once, so that a gradient in half precision is rounded once.
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
        # In working precision, because counts that are divided as integers give single precision.
        weights = self.normalizer(lengths.to(dtype), batch.totals).to(dtype)
        require_shape(self.normalizer, "__call__", weights, "batch", lengths.shape)
        return Trace(before, transform, log_values, log_terms, completion=torch.where(lengths > 0, weights, 0))

    def _require_one_ratio(self, batch: PolicyBatch) -> None:
        """Refuse advantages and corrections per token: the ratio of a completion, once clipped, has neither."""
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
