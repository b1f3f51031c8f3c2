"""Evaluation of an objective on a recorded optimizer step, as the training step would have evaluated it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aggregate_po import CompletionValues, Evaluated, GroupTerms, PerToken, PolicyBatch, PolicyObjective
from lightning_modules.recordings.manifest import Manifest
from lightning_modules.recordings.steps import RecordedStep, detached


@torch.no_grad()
def evaluated_step(objective: PolicyObjective, step: RecordedStep, on_policy: bool = False) -> list[Evaluated]:
    """Return value and gradient weights of an objective on each micro-batch of a step.

    Args:
        objective: objective to evaluate.
        step: recorded optimizer step.
        on_policy: whether every ratio is 1, so that the weights are those of the first update of a rollout.

    Raises:
        ValueError: the objective reads what the recording lacks.
    """
    policies = [_without_terms(part.batch.policy) for part in step.batches]
    log_probs = [
        policy.old_log_probs if on_policy else part.log_probs
        for policy, part in zip(policies, step.batches, strict=True)
    ]
    policies = with_group_terms(objective, log_probs, policies)
    return [detached(objective.evaluate(x, policy)) for x, policy in zip(log_probs, policies, strict=True)]


def with_group_terms(
    objective: PolicyObjective, log_probs: Sequence[PerToken], policies: Sequence[PolicyBatch]
) -> list[PolicyBatch]:
    """Return the micro-batches of a step with the terms of a group objective, from the groups of the whole step."""
    if objective.group_objective is None:
        return list(policies)
    pairs = zip(log_probs, policies, strict=True)
    tables = [objective.completion_values(x.detach(), policy).table.cpu() for x, policy in pairs]
    terms = objective.group_terms(CompletionValues.of([torch.cat(tables)]))
    parts = (term.split([len(table) for table in tables]) for term in terms)
    by_batch = [GroupTerms(*part) for part in zip(*parts, strict=True)]
    return [
        replace(policy, group_values=term.values, group_advantages=term.advantages)
        for policy, term in zip(policies, by_batch, strict=True)
    ]


def _without_terms(policy: PolicyBatch) -> PolicyBatch:
    return replace(policy, group_values=None, group_advantages=None)


def require_comparable(label: str, objective: PolicyObjective, manifest: Manifest, step: RecordedStep) -> None:
    """Check that a recording has what an objective reads.

    Args:
        label: name of the objective in the error.
        objective: objective to evaluate.
        manifest: manifest of the recording.
        step: any step of the recording.

    Raises:
        ValueError: the recording lacks something; the error says what, and how to record it.
    """
    policy = step.batches[0].batch.policy
    if objective.needs_reference and policy.ref_log_probs is None:
        _refuse(label, "reads reference log-probabilities, which the recording lacks", "record with `--reference true`")
    if objective.trains_every_completion and not manifest.every_completion:
        missing = "has a gradient on completions of advantage 0, which the recording left out as its training did"
        _refuse(label, missing, "record with `--every_completion true`")
    try:
        evaluated_step(objective, step)
    except (ValueError, RuntimeError) as error:
        _refuse(
            label, f"cannot be evaluated on this recording: {error}", "leave it out, or record what it reads", error
        )


def _refuse(label: str, reason: str, remedy: str, cause: Exception | None = None) -> None:
    raise ValueError(f"`objectives` has {label!r}, which {reason}; {remedy}.") from cause
