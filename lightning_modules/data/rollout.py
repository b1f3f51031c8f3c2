"""A rollout: scored groups, what the policies say of them, and their advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from aggregate_po import CorrectionWeights, PerCompletion, PerToken, SamplerCorrection, masked_sum
from lightning_modules.batch import Sequences
from lightning_modules.data.groups import Groups
from lightning_modules.data.metrics import mismatch_tally
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.model.policy import Policy
from lightning_modules.tally import Tally

LogProbSource = Literal["sampler", "trainer"]


@dataclass(frozen=True)
class RolloutLogProbs:
    """Log-probabilities of the completions of a rollout under the policies that the objective compares.

    Args:
        old: under the behavior policy; shape `batch time`; nats.
        reference: under the reference policy, None where none is kept; shape `batch time`; nats.
        correction: weights that make up for a sampler other than the behavior policy.
        mismatch: of sampler and behavior policy, as this rank counts it; nothing where they are one.
    """

    old: PerToken
    reference: PerToken | None
    correction: CorrectionWeights
    mismatch: Tally


@dataclass(frozen=True)
class Rollout:
    """Everything that is known of this rank's completions before they are trained on.

    Args:
        groups: completions with their rewards.
        sequences: the token ids that a model reads.
        log_probs: of the completions.
        advantages: estimated on the groups of all ranks; shape `batch` or `batch time`.
        metrics: the same on all ranks.
    """

    groups: Groups
    sequences: Sequences
    log_probs: RolloutLogProbs
    advantages: PerCompletion | PerToken
    metrics: Mapping[str, float]


def rollout_log_probs(
    groups: Groups,
    sequences: Sequences,
    policy: Policy,
    source: LogProbSource,
    correction: SamplerCorrection | None,
    plan: UpdatePlan,
) -> RolloutLogProbs:
    """Return the sampler's log-probabilities or the trainer's, the correction between the two, and the reference's.

    Raises:
        ValueError: they are to be the sampler's, and it gave none for some tokens.
    """
    sampled, mask = groups.completions.log_probs, groups.response_mask
    if source == "sampler":
        _require_log_probs(sampled, mask)
        old, weights, mismatch = sampled, CorrectionWeights(), Tally()
    else:
        old = _by_micro_batches(policy.current_log_probs, sequences, policy, plan, sampled.dtype)
        weights = CorrectionWeights() if correction is None else correction(old, sampled, mask)
        mismatch = mismatch_tally(old, sampled, mask, weights)
    reference = None
    if policy.keeps_reference:
        reference = _by_micro_batches(policy.reference_log_probs, sequences, policy, plan, sampled.dtype)
    return RolloutLogProbs(old, reference, weights, mismatch)


def penalized_rewards(groups: Groups, log_probs: RolloutLogProbs, coefficient: float) -> PerCompletion:
    """Return rewards less the log ratio to the reference, summed over trained tokens; shape `batch`."""
    if log_probs.reference is None:
        return groups.rewards
    log_ratio = masked_sum(log_probs.old - log_probs.reference, groups.response_mask)
    return groups.rewards - coefficient * log_ratio


def _require_log_probs(log_probs: PerToken, response_mask: PerToken) -> None:
    missing = int((response_mask & ~torch.isfinite(log_probs)).sum())
    if missing:
        raise ValueError(
            f"the sampler gave no log-probability for {missing} of {int(response_mask.sum())} tokens; have them "
            "computed by the trainer, `old_log_probs: trainer`."
        )


def _by_micro_batches(
    log_probs_of: Callable[[Sequences], PerToken],
    sequences: Sequences,
    policy: Policy,
    plan: UpdatePlan,
    dtype: torch.dtype,
) -> PerToken:
    """Return log-probabilities of all completions on the CPU, computed a micro-batch at a time."""
    log_probs = torch.zeros(sequences.completion_ids.shape, dtype=dtype)
    for rows in plan.all_rows(sequences):
        # Sharded weights are gathered by all ranks, so each makes as many calls as the others.
        rows = rows if len(rows) else torch.tensor([0])
        values = log_probs_of(sequences.select(rows).to(policy.device)).cpu()
        log_probs[rows, : values.shape[1]] = values
    return log_probs
