"""Checks that the objective has a definition for what a run would give it, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from lightning import Trainer
from torch import Tensor

from aggregate_po import CorrectionWeights, PolicyBatch, PolicyObjective, SamplerCorrection, StepTotals, TokenWeighting
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.spans import SpanRule


def require_defined(
    trainer: Trainer,
    token_weights: TokenWeighting | None,
    schemes: Sequence[SamplingScheme],
    correction: SamplerCorrection | None,
    spans: SpanRule | None,
    **known: Tensor,
) -> None:
    """Check that the objective that is trained has a definition for weights, corrections and spans, or for none.

    The arguments are those of the data module, and what batches of two completions with two tokens each hold besides,
    by the names of `PolicyBatch`. Advantages per token are found out with the first rollout.

    Raises:
        ValueError: a part of the objective has none, or misses the spans that it needs.
    """
    objective = cast(PolicyObjective, trainer.lightning_module.objective)
    _require_weights_taken(objective, token_weights)
    _require_unweighted(objective, schemes)
    mask, old_log_probs = torch.ones(2, 2, dtype=torch.bool), torch.full((2, 2), -1.0)
    batch = PolicyBatch(
        old_log_probs=old_log_probs,
        response_mask=mask,
        advantages=torch.tensor([1.0, -1.0]),
        totals=StepTotals(completions=2, tokens=4, progress=0.0, reward_mean=0.5, reward_std=0.5),
        ref_log_probs=old_log_probs,
        groups=torch.zeros(2, dtype=torch.long),
        span_ids=None if spans is None else torch.zeros(2, 2, dtype=torch.long),
        correction=CorrectionWeights() if correction is None else correction(old_log_probs, old_log_probs, mask),
        **known,
    )
    objective(old_log_probs, batch)
    _require_end(trainer, objective, old_log_probs, batch)


def _require_end(trainer: Trainer, objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch) -> None:
    """Check that a run without an end, which makes no progress, has an objective that follows none."""
    if trainer.max_steps != -1 or trainer.max_epochs != -1:
        return
    try:
        objective(log_probs, replace(batch, totals=replace(batch.totals, progress=None)))
    except ValueError as error:
        raise ValueError(
            f"`max_steps` is -1, so the run has no end, but the objective follows its progress: {objective!r}; pass "
            "`max_steps` to the trainer."
        ) from error


def _require_weights_taken(objective: PolicyObjective, weighting: TokenWeighting | None) -> None:
    """Check that the parts of the objective are defined for the weights of the tokens, unless these are boolean."""
    if weighting is None or objective.takes_mean_weights:
        return
    example: Tensor = weighting(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 1.0]]))
    if example.dtype != torch.bool:
        raise ValueError(
            f"`token_weights` is {weighting!r}, but a part of the objective counts every token once: {objective!r}; "
            "pass a rule whose weights are boolean, such as TopEntropy, or another objective."
        )


def _require_unweighted(objective: PolicyObjective, schemes: Sequence[SamplingScheme]) -> None:
    """Check that no sampling scheme weights completions that a group objective compares."""
    for scheme in schemes:
        if objective.group_objective is not None and scheme.gives_weights:
            raise ValueError(
                f"`schemes` has {scheme!r}, which weights advantages, but `group_objective` "
                f"{objective.group_objective!r} takes these for labels or scores; pass schemes that only choose "
                "groups, such as DynamicSampling."
            )
