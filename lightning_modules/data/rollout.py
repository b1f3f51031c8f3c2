"""A rollout: scored groups with their log-probabilities and advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aggregate_po import CorrectionWeights, PerCompletion, PerToken, SamplerCorrection, masked_sum
from lightning_modules.batch import Sequences
from lightning_modules.data.groups import Groups
from lightning_modules.data.metrics import mismatch_tally
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.micro_batch import ModelInputs
from lightning_modules.model.policy import Policy
from lightning_modules.tally import Tally

LogProbSource = Literal["sampler", "trainer"]


@dataclass(frozen=True)
class RolloutLogProbs:
    """Log-probabilities of the completions of a rollout under the policies that the objective compares.

    Args:
        old: log-probabilities under the behavior policy, at least in float32; shape `batch time`; nats.
        reference: log-probabilities under the reference policy, None without one; shape `batch time`; nats.
        correction: weights that correct for the mismatch between sampler and behavior policy.
        mismatch: mismatch between sampler and behavior policy on this rank; empty if they are the same.
        entropies: entropies of the behavior policy, None if its log-probabilities are the sampler's; shape
            `batch time`; nats.
    """

    old: PerToken
    reference: PerToken | None
    correction: CorrectionWeights
    mismatch: Tally
    entropies: PerToken | None = None


@dataclass(frozen=True)
class Rollout:
    """All data of the completions of this rank, before they are split into micro-batches.

    Args:
        groups: completions with their rewards.
        inputs: prompts and completions as the input of a forward pass.
        log_probs: log-probabilities of the completions.
        advantages: advantages, estimated from the groups of all ranks; shape `batch` or `batch time`.
        metrics: metrics of the rollout, the same on all ranks.
        mean_weights: weights of the tokens in every mean, None without; shape `batch time`.
        span_ids: number of each token's span, None without; shape `batch time`.
    """

    groups: Groups
    inputs: ModelInputs
    log_probs: RolloutLogProbs
    advantages: PerCompletion | PerToken
    metrics: Mapping[str, float]
    mean_weights: PerToken | None = None
    span_ids: PerToken | None = None


def rollout_log_probs(
    groups: Groups,
    sequences: Sequences,
    policy: Policy,
    source: LogProbSource,
    correction: SamplerCorrection | None,
    plan: UpdatePlan,
) -> RolloutLogProbs:
    """Return the log-probabilities of behavior policy and reference, and the correction for the sampler mismatch.

    Raises:
        ValueError: the sampler is the behavior policy, and some of its log-probabilities are missing.
    """
    mask, entropies = groups.response_mask, None
    sampled = _at_least_float32(groups.completions.log_probs)
    if source == "sampler":
        _require_log_probs(sampled, mask)
        old, weights, mismatch = sampled, CorrectionWeights(), Tally()
    else:
        pass_of = policy.current_log_probs_and_entropy
        old, entropies = _by_micro_batches(pass_of, sequences, policy, plan)
        weights = CorrectionWeights() if correction is None else correction(old, sampled, mask)
        mismatch = mismatch_tally(old, sampled, mask, weights)
    reference = None
    if policy.keeps_reference:

        def reference_pass(part: Sequences) -> tuple[PerToken]:
            return (policy.reference_log_probs(part),)

        (reference,) = _by_micro_batches(reference_pass, sequences, policy, plan)
    return RolloutLogProbs(old, reference, weights, mismatch, entropies)


def penalized_rewards(groups: Groups, log_probs: RolloutLogProbs, coefficient: float) -> PerCompletion:
    """Subtract the log ratio to the reference, summed over tokens and scaled, from each reward; shape `batch`.

    Completions that only count in the baseline of their group, such as truncated ones, are penalized as the others are.

    Raises:
        ValueError: the sampler is the behavior policy, and some of its log-probabilities are missing.
    """
    if log_probs.reference is None or not coefficient:
        return groups.rewards
    counted = groups.completions.trainable & groups.scored.unsqueeze(-1)
    _require_log_probs(log_probs.old, counted)
    log_ratio = masked_sum(log_probs.old.double() - log_probs.reference.double(), counted)
    return groups.rewards - coefficient * log_ratio


def _require_log_probs(log_probs: PerToken, mask: PerToken) -> None:
    missing = int((mask & ~torch.isfinite(log_probs)).sum())
    if missing:
        raise ValueError(
            f"the sampler gave no log-probability for {missing} of {int(mask.sum())} tokens; let the trainer "
            "compute them, `old_log_probs: trainer`."
        )


def _by_micro_batches(
    results_of: Callable[[Sequences], tuple[PerToken, ...]],
    sequences: Sequences,
    policy: Policy,
    plan: UpdatePlan,
) -> Tensor:
    """Return the results of all completions on the CPU, computed one micro-batch at a time; `result batch time`.

    They have the precision in which they were computed, at least float32.
    """
    results: list[PerToken] = []
    for rows in plan.all_rows(sequences):
        # All ranks gather sharded weights together, so every rank must make the same number of calls.
        rows = rows if len(rows) else torch.tensor([0])
        found = [_at_least_float32(values.cpu()) for values in results_of(sequences.select(rows).to(policy.device))]
        results = results or [torch.zeros(sequences.completion_ids.shape, dtype=values.dtype) for values in found]
        for result, values in zip(results, found, strict=True):
            result[rows, : values.shape[1]] = values
    return torch.stack(results)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
