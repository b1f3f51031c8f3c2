"""Policy objective: transform, aggregate, transform, normalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.aggregators.base import EvaluatedAggregator, TokenAggregator
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.checks import parts_without_weights, require_parts_of_tokens_only
from aggregate_po.gradient_weights import Evaluated, GradientWeights
from aggregate_po.group_objectives import CompletionValues, GroupObjective, GroupTerms, group_terms
from aggregate_po.normalizers import Normalizer, SequenceMean
from aggregate_po.penalties import Penalty
from aggregate_po.prefixes import PrefixAggregate
from aggregate_po.shapes import require_shape
from aggregate_po.suffixes import SuffixWeight
from aggregate_po.trace import TokenTrace, Trace, trace_completions, trace_groups, trace_tokens
from aggregate_po.transforms.base import RatioTransform


class PolicyObjective:
    r"""Policy objective $J = \sum_i c_i A_i S_i$ minus the penalties, to be maximized (eq. 3).

    Args:
        aggregator: Reduction of the token log ratios of a completion to one log ratio.
        token_transform: Transform of the log ratio of each token, before the mean.
        sequence_transform: Transform of the log ratio of each completion, after the mean.
        normalizer: Weight of each completion, from the totals of the optimizer step.
        penalties: Costs subtracted from the objective.
        prefix: Aggregate of each token's prefix, which replaces its log ratio before the token transform.
        suffix_weight: Factor of each token's advantage, from the log ratios of the tokens that follow it.
        group_objective: Value of a group from the log values of its completions, in place of the sum of advantage
            times value (eq. 56). A batch then needs `groups`, and holds either whole groups or their terms; see
            `completion_values` and `group_terms`.

    Raises:
        TypeError: a part is of the wrong kind.
        ValueError: a suffix weight, which gives each token its own advantage, is combined with a part that has no
            definition for it: a sequence transform or a group objective.

    Log ratios are clamped to +-20 on entry and after the prefix aggregate, and log values to at most 20, so every
    finite input gives a finite value, finite weights and a finite gradient. Outside these bounds the gradient is zero
    and counted as overflow.

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
        *,
        prefix: PrefixAggregate | None = None,
        suffix_weight: SuffixWeight | None = None,
        group_objective: GroupObjective | None = None,
    ) -> None:
        _require("aggregator", aggregator, TokenAggregator)
        _require("normalizer", normalizer, Normalizer)
        if prefix is not None:
            _require("prefix", prefix, PrefixAggregate)
        if suffix_weight is not None:
            _require("suffix_weight", suffix_weight, SuffixWeight)
            completions = {"sequence_transform": sequence_transform, "group_objective": group_objective}
            require_parts_of_tokens_only(suffix_weight, completions)
        if token_transform is not None:
            _require("token_transform", token_transform, RatioTransform)
        if sequence_transform is not None:
            _require("sequence_transform", sequence_transform, RatioTransform)
        if group_objective is not None:
            _require("group_objective", group_objective, GroupObjective)
        if isinstance(penalties, Penalty):
            raise TypeError(f"`penalties` is {penalties!r}; pass a list of penalties, even for a single one.")
        for penalty in penalties:
            _require("penalties", penalty, Penalty)
        self.aggregator = aggregator
        self.prefix = prefix
        self.suffix_weight = suffix_weight
        self.token_transform = token_transform
        self.sequence_transform = sequence_transform
        self.normalizer = normalizer
        self.penalties = tuple(penalties)
        self.group_objective = group_objective

    @override
    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part!r}" for name, part in vars(self).items() if part is not None and part != ())
        return f"PolicyObjective({parts})"

    @property
    def needs_reference(self) -> bool:
        """Whether any penalty reads the reference policy, `batch.ref_log_probs` or `batch.ref_divergence`."""
        return any(penalty.needs_reference for penalty in self.penalties)

    @property
    def trains_every_completion(self) -> bool:
        """Whether completions of advantage 0 have a gradient too, through a penalty or a group objective."""
        return bool(self.penalties) or self.group_objective is not None

    @property
    def takes_mean_weights(self) -> bool:
        """Whether tokens can count by `batch.mean_weights`; boolean weights, which are a mask, are always taken."""
        return not parts_without_weights(self)

    def __call__(self, log_probs: PerToken, batch: PolicyBatch) -> Tensor:
        """Return the value of the objective, a scalar attached to the graph of `log_probs`.

        Args:
            log_probs: Log-probabilities under the trained policy; shape `batch time`; nats.
            batch: The completions.

        Raises:
            ValueError: shapes disagree, a part does not support weights, per-token advantages or corrections, or a
                penalty needs reference log-probabilities that the batch lacks.
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

    @torch.no_grad()
    def completion_values(self, log_probs: PerToken, batch: PolicyBatch) -> CompletionValues:
        """Return what the group objective reads of the completions of a micro-batch; collect them over a step.

        Arguments and errors are those of `__call__`; also an error without `batch.groups`. The result is detached.
        """
        before = trace_tokens(self, log_probs, batch)
        return trace_completions(self, before, self.aggregator.log_aggregate(before.tokens)).completion_values

    def group_terms(self, completions: CompletionValues) -> GroupTerms:
        """Return value and gradient of the group objective, for the `group_values` and `group_advantages` of batches.

        Args:
            completions: values of all completions of the groups, over the ranks and micro-batches of a step.

        Raises:
            ValueError: there is no group objective, or it returned a wrong shape.
        """
        if self.group_objective is None:
            raise ValueError("`group_objective` is None, so no batch needs group terms; leave them out.")
        return group_terms(self.group_objective, completions)

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
        before = trace_tokens(self, log_probs, batch)
        if before.has_token_advantages:
            return self._completed(before)[0]
        trace = trace_completions(self, before, self.aggregator.log_aggregate(before.tokens))
        return trace_groups(self.group_objective, trace)

    def _trace_with_weights(self, log_probs: PerToken, batch: PolicyBatch) -> tuple[Trace, EvaluatedAggregator]:
        """Run a batch through all parts; also return the result of the aggregator, with its token weights."""
        return self._completed(trace_tokens(self, log_probs, batch))

    def _completed(self, before: TokenTrace) -> tuple[Trace, EvaluatedAggregator]:
        aggregate = self.aggregator.evaluate(before.tokens)
        require_shape(self.aggregator, "token_weights", aggregate.token_weights, "batch time", before.within.shape)
        trace = trace_completions(self, before, aggregate.log_aggregate, aggregate.token_weights)
        return trace_groups(self.group_objective, trace), aggregate


def _require(name: str, part: object, kind: type) -> None:
    if not isinstance(part, kind):
        raise TypeError(f"`{name}` is {part!r}; pass an instance of a subclass of aggregate_po.{kind.__name__}.")
