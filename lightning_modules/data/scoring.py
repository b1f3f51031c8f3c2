"""Scoring of sampled completions: single rewards, and the rules for truncated ones and for failed verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from lightning import Trainer
from torch import Tensor

from aggregate_po import PerCompletion, PerToken
from lightning_modules.data.sampler import Sampled
from lightning_modules.data.verdicts import verdict_tally
from lightning_modules.distributed import broadcast_in_tensor_parallel_group, is_tensor_parallel_leader
from lightning_modules.prompts import Example
from lightning_modules.rewards import (
    Cause,
    FailedVerdictRule,
    Scores,
    TruncationRule,
    WeightedRewards,
    scored_completions,
    trained_tokens,
    truncated_rewards,
)


@dataclass(frozen=True)
class ScoredCompletions:
    """Scores of completions, as `Groups` has them.

    Args:
        components: single rewards of each completion, after the truncation rule; shape `batch component`; float64.
        rewards: weighted sums of the single rewards; shape `batch`; float64.
        response_mask: True on trained tokens; shape `batch time`.
        scored: False for completions without a reward; shape `batch`.
        causes: cause of each failed verdict, None where there is a reward; `causes[completion][component]`.
    """

    components: Tensor
    rewards: PerCompletion
    response_mask: PerToken
    scored: PerCompletion
    causes: Sequence[Sequence[Cause | None]]


class CompletionScorer:
    """Scores the completions of one rollout, and counts the verdicts on all of them, whether they are kept or not.

    Args:
        rewards: scores the completions.
        truncated: rule for truncated completions.
        failed_verdicts: rule for completions on which a verdict failed.
        trainer: trainer; the ranks of a tensor-parallel group share scores.

    Attributes:
        verdicts: counts of the verdicts of this rank, for `verdict_metrics`.
    """

    def __init__(
        self, rewards: WeightedRewards, truncated: TruncationRule, failed_verdicts: FailedVerdictRule, trainer: Trainer
    ) -> None:
        self._rewards, self._truncated, self._failed_verdicts = rewards, truncated, failed_verdicts
        self._trainer = trainer
        self.verdicts = verdict_tally([], rewards)

    def __call__(self, sampled: Sampled, examples: Sequence[Example]) -> ScoredCompletions:
        """Score completions, given the example of each."""
        completions = sampled.completions
        scores = self._rewards.scores(sampled.rewarded, examples) if is_tensor_parallel_leader(self._trainer) else None
        scores = cast(Scores, broadcast_in_tensor_parallel_group(scores, self._trainer))
        self.verdicts += verdict_tally(scores.causes, self._rewards)
        components = truncated_rewards(self._truncated, scores.components, completions.finished)
        decided = ~completions.finished & (self._truncated == "zero_reward")
        scored = scored_completions(self._failed_verdicts, scores, decided)
        trained = trained_tokens(self._truncated, completions.trainable, completions.finished)
        rewards, mask = self._rewards.total(components), trained & scored.unsqueeze(-1)
        return ScoredCompletions(components, rewards, mask, scored, scores.causes)
