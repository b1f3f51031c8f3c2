"""One pass through the parts of an objective, from log-probabilities to the log value of each completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch, TokenRatios
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of, working_precision
from aggregate_po.masked import masked_sum
from aggregate_po.shapes import bind_shapes, require_shape
from aggregate_po.transforms.base import transformed

if TYPE_CHECKING:
    from aggregate_po.objective import PolicyObjective


@dataclass(frozen=True)
class Trace:
    """What value and gradient weights of an objective have in common.

    Args:
        log_probs: under the policy that is trained, in working precision, 0 on padding; shape `batch time`.
        within: True on log ratios inside the bound; shape `batch time`.
        entering: what the token transform sees.
        tokens: what the aggregator sees.
        sequences: what the sequence transform sees, where there is one.
        log_values: log value of each completion; shape `batch`.
        log_terms: terms of that value, where each token has an advantage of its own; shape `batch time`.
        completion: weight of each completion; shape `batch`.
    """

    log_probs: PerToken
    within: PerToken
    entering: TokenRatios
    tokens: TokenRatios
    sequences: TokenRatios | None
    log_values: PerCompletion
    log_terms: PerToken | None
    completion: PerCompletion

    @classmethod
    def of(cls, objective: PolicyObjective, log_probs: PerToken, batch: PolicyBatch) -> Trace:
        """Send a batch through the parts.

        Raises:
            ValueError: shapes disagree, or an advantage or a correction per token meets a part that has no definition
                for it.
        """
        bind_shapes(response_mask=(batch.response_mask, "batch time"), log_probs=(log_probs, "batch time"))
        if objective.sequence_transform is not None:
            _require_one_ratio(objective, batch)
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
        tokens = transformed(entering, objective.token_transform).corrected(batch.correction)
        log_values = objective.aggregator.log_aggregate(tokens)
        require_shape(objective.aggregator, "log_aggregate", log_values, "batch", lengths.shape)
        log_values = torch.where(lengths > 0, log_values, 0)
        log_terms = objective.aggregator.log_terms(tokens) if batch.has_token_advantages else None
        sequences = None
        if objective.sequence_transform is not None:
            sequences = entering.after_mean(log_values)
            log_values = transformed(sequences, objective.sequence_transform).log_ratio
        if batch.correction.log_sequence is not None:
            log_weights = batch.correction.log_sequence.to(log_ratio.dtype)
            log_values = log_values + log_weights
            log_terms = None if log_terms is None else log_terms + rearrange(log_weights, "batch -> batch 1")
        # In working precision, because counts that are divided as integers give single precision.
        weights = objective.normalizer(lengths.to(log_ratio.dtype), batch.totals).to(log_ratio.dtype)
        require_shape(objective.normalizer, "__call__", weights, "batch", lengths.shape)
        return cls(
            log_probs=log_probs,
            within=raw.detach().abs() <= MAX_LOG_RATIO,
            entering=entering,
            tokens=tokens,
            sequences=sequences,
            log_values=log_values,
            log_terms=log_terms,
            completion=torch.where(lengths > 0, weights, 0),
        )

    @property
    def shares(self) -> Tensor:
        """Weight of the cost of one token: the completion's, over its length; shape `(batch, 1)`."""
        return rearrange(self.completion / self.entering.lengths.clamp(min=1), "batch -> batch 1")

    def average(self, per_token: PerToken) -> Tensor:
        """This batch's part of a cost's average over the optimiser step."""
        return masked_sum(self.shares * per_token, self.entering.response_mask).sum()

    def advantage_weighted(self) -> PerCompletion:
        """Value of each completion times its advantage, or the sum of its tokens' terms times theirs (eq. 19)."""
        advantages, terms = self.entering.advantages, self.log_terms
        if terms is None:
            return advantages.squeeze(-1) * self.log_values.clamp(max=MAX_LOG_RATIO).exp()
        # The bound is on the completion's value, so all its terms shrink, and stop, together.
        excess = rearrange((self.log_values - MAX_LOG_RATIO).clamp(min=0), "batch -> batch 1").detach()
        terms = torch.where(excess > 0, terms.detach() - excess, terms)
        return masked_sum(advantages * terms.exp(), self.entering.response_mask)


def _require_one_ratio(objective: PolicyObjective, batch: PolicyBatch) -> None:
    """The ratio of a completion, once clipped, has neither an advantage nor a correction per token."""
    acts = f"which `sequence_transform` {objective.sequence_transform!r} acts on"
    if batch.has_token_advantages:
        raise ValueError(
            f"`advantages` has shape `batch time`, but the ratio of a completion, {acts}, has no advantage per token; "
            "pass one advantage per completion, or give each token its completion's ratio "
            "(aggregate_po.transforms.CompletionRatio)."
        )
    if batch.correction.log_token is not None:
        raise ValueError(
            f"`correction` has a weight per token, but the ratio of a completion, {acts}, would be clipped with them; "
            "pass a SequenceCorrection, which multiplies what the clip leaves."
        )
