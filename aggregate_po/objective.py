"""The objective: transform, aggregate, transform, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PerToken, PolicyBatch, TokenRatios
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.gradient_weights import GradientWeights
from aggregate_po.normalizers import Normalizer, SequenceMean
from aggregate_po.penalties import Penalty
from aggregate_po.shapes import bind_shapes, require_shape
from aggregate_po.trace import Trace
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
            ValueError: shapes disagree, or a penalty misses the reference log-probabilities.
        """
        trace = self._trace(log_probs, batch)
        objective = (trace.completion * trace.advantage_weighted()).sum()
        for penalty in self.penalties:
            objective = objective - trace.average(penalty.token_costs(trace.log_probs, batch))
        return objective

    @torch.no_grad()
    def gradient_weights(self, log_probs: PerToken, batch: PolicyBatch) -> GradientWeights:
        """Closed-form gradient of the objective with respect to `log_probs`, in factors.

        Takes what `__call__` takes and raises what it raises; nothing is attached to the graph.
        """
        trace = self._trace(log_probs, batch)
        mask = batch.response_mask
        log_ratio = trace.entering.log_ratio
        gate = trace.within.to(log_ratio.dtype) * trace.token_transform.derivative
        if batch.correction.kept is not None:
            gate = gate * batch.correction.kept
        magnitude = trace.log_values.clamp(max=MAX_LOG_RATIO).exp() * trace.sequence_transform.derivative
        finite = trace.log_values <= MAX_LOG_RATIO
        overflow = mask & ~(trace.within & rearrange(finite, "batch -> batch 1"))
        clipped = trace.tokens.saturated | rearrange(trace.sequence_transform.saturated, "batch -> batch 1")
        concentration = self.aggregator.token_weights(trace.tokens)
        require_shape(self.aggregator, "token_weights", concentration, "batch time", mask.shape)
        penalty = torch.zeros_like(log_ratio)
        for part in self.penalties:
            penalty = penalty - trace.shares * part.token_derivatives(trace.log_probs, batch)
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

    @torch.no_grad()
    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """What the penalties observe, each averaged as its costs are; add up over the pieces of a step for `adapt`.

        Takes what `__call__` takes and raises what it raises; one number per penalty, in their order.
        """
        trace = self._trace(log_probs, batch)
        averages = [trace.average(penalty.observed(trace.log_probs, batch)) for penalty in self.penalties]
        return torch.stack(averages) if averages else trace.completion.new_zeros(0)

    def adapt(self, observed: Sequence[float]) -> None:
        """Let the penalties adapt, once after every optimiser step, to what `observed` amounted to over the step."""
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
        """Send a batch through the parts.

        Raises:
            ValueError: shapes disagree, or an advantage or a correction per token meets a part that has no definition
                for it.
        """
        bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
        if self.sequence_transform is not None:
            self._require_one_ratio(batch)
        mask = batch.response_mask
        lengths = mask.sum(dim=-1)
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
            lengths=lengths,
            old_log_probs=batch.old_log_probs,
            advantages=advantages if batch.has_token_advantages else rearrange(advantages, "batch -> batch 1"),
            totals=batch.totals,
        )
        token_transform = EvaluatedTransform.identity(log_ratio)
        if self.token_transform is not None:
            token_transform = evaluated(self.token_transform, entering)
        tokens = entering.transformed(token_transform.value, token_transform.saturated).corrected(batch.correction)
        log_values = self.aggregator.log_aggregate(tokens)
        require_shape(self.aggregator, "log_aggregate", log_values, "batch", lengths.shape)
        log_values = torch.where(lengths > 0, log_values, 0)
        log_terms = self.aggregator.log_terms(tokens) if batch.has_token_advantages else None
        sequence_transform = EvaluatedTransform.identity(log_values)
        if self.sequence_transform is not None:
            sequence_transform = evaluated(self.sequence_transform, entering.after_mean(log_values))
            log_values = sequence_transform.value
        if batch.correction.log_sequence is not None:
            log_weights = batch.correction.log_sequence.to(log_ratio.dtype)
            log_values = log_values + log_weights
            log_terms = None if log_terms is None else log_terms + rearrange(log_weights, "batch -> batch 1")
        # In working precision, because counts that are divided as integers give single precision.
        weights = self.normalizer(lengths.to(log_ratio.dtype), batch.totals).to(log_ratio.dtype)
        require_shape(self.normalizer, "__call__", weights, "batch", lengths.shape)
        return Trace(
            log_probs=log_probs,
            within=raw.detach().abs() <= MAX_LOG_RATIO,
            entering=entering,
            token_transform=token_transform,
            tokens=tokens,
            sequence_transform=sequence_transform,
            log_values=log_values,
            log_terms=log_terms,
            completion=torch.where(lengths > 0, weights, 0),
        )

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
