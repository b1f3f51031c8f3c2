"""Split of a rollout into the micro-batches of its optimizer steps, each with the totals of its full step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning import Trainer
from torch import Tensor

from aggregate_po import PolicyBatch, StepTotals
from aggregate_po.masked import masked_length
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.data.rollout import Rollout
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.micro_batch import MicroBatch, inert
from lightning_modules.tally import Tally

_NAMES, _KINDS = ("completions", "tokens"), ("", "weighted_")


def updates(rollout: Rollout, plan: UpdatePlan, keeps_all: bool, trainer: Trainer) -> tuple[list[MicroBatch], float]:
    """Return the micro-batches of all optimizer steps in order, and the fraction of completions in them.

    Completions without gradient are left out of the forward pass, but are included in the totals of their step. These
    are all whose advantages are 0: in groups without signal, or because a sampling scheme has set them to 0.

    Args:
        rollout: rollout of this rank.
        plan: split of the rollout.
        keeps_all: whether to keep completions with zero advantage, which have a gradient through penalties or a group
            objective.
        trainer: trainer, for collectives over ranks and the current step.
    """
    mean_weights = rollout.mean_weights
    # A token of weight 0 is no token, and booleans are a mask.
    mask = rollout.groups.response_mask if mean_weights is None else rollout.groups.response_mask & (mean_weights > 0)
    contributes = mask.any(dim=-1)
    if not keeps_all:
        contributes = contributes & _has_gradient(rollout.advantages)
    weights = rollout.groups.weights.repeat_interleave(rollout.groups.group_size)
    steps = torch.arange(len(mask)).tensor_split(plan.updates)
    lengths = masked_length(mask, None if mean_weights is None else mean_weights.double())
    counts = [_counted(lengths[rows], contributes[rows], weights[rows]).over_ranks(trainer) for rows in steps]
    scales = _scales(counts)
    # The ranks take prompts in turn.
    own = torch.arange(len(rollout.groups)) * data_parallel_size(trainer) + data_parallel_rank(trainer)
    groups = own.repeat_interleave(rollout.groups.group_size)
    batches = []
    for number in range(plan.updates * plan.epochs):
        rows, counted = steps[number % plan.updates], counts[number % plan.updates]
        step = _step(rollout, rows, groups, _totals(counted, scales, rollout, number, trainer))
        split = plan.rows(step, contributes[rows].nonzero().squeeze(-1), plan.micro_batches)
        # A micro-batch without completions would skip the backward pass, and other ranks would wait.
        parts = [step.select(part) if len(part) else inert(step.select(torch.arange(1))) for part in split]
        batches += [part.replace(closes_update=part is parts[-1]) for part in parts]
    trained = sum(counted.sums["contributing"] for counted in counts)
    return batches, trained / sum(counted.sums["all"] for counted in counts)


def _step(rollout: Rollout, rows: Tensor, groups: Tensor, totals: StepTotals) -> MicroBatch:
    """Return all completions of one optimizer step as a single batch."""
    inputs = rollout.inputs.select(rows)
    time = inputs.completion_mask.shape[1]
    log_probs, reference = rollout.log_probs, rollout.log_probs.reference
    advantages = _in_precision(log_probs.old.dtype, rollout.advantages[rows])
    policy = PolicyBatch(
        old_log_probs=log_probs.old[rows, :time],
        response_mask=rollout.groups.response_mask[rows, :time],
        advantages=advantages if advantages.ndim == 1 else advantages[:, :time],
        totals=totals,
        ref_log_probs=None if reference is None else reference[rows, :time],
        mean_weights=None if rollout.mean_weights is None else rollout.mean_weights[rows, :time],
        span_ids=None if rollout.span_ids is None else rollout.span_ids[rows, :time],
        correction=log_probs.correction.map(lambda tensor: tensor[rows, :time] if tensor.ndim == 2 else tensor[rows]),
        groups=groups[rows],
    )
    return inputs.micro_batch(
        policy=policy,
        samples=rows % rollout.groups.group_size,
        rewards=torch.where(rollout.groups.scored, rollout.groups.rewards, torch.nan)[rows],
    )


def _in_precision(dtype: torch.dtype, advantages: Tensor) -> Tensor:
    """Return the advantages, which come in float64, in the precision of the log-probabilities, clamped to its range."""
    limits = torch.finfo(dtype)
    return advantages.clamp(limits.min, limits.max).to(dtype)


def _counted(lengths: Tensor, contributes: Tensor, weights: Tensor) -> Tally:
    """Return the counts of completions and tokens of one optimizer step on this rank, plain and weighted by prompt."""
    return Tally.of(
        completions=(lengths > 0).sum(),
        tokens=lengths.sum(),
        weighted_completions=(weights * (lengths > 0)).sum(),
        weighted_tokens=(weights * lengths).sum(),
        contributing=contributes.sum(),
        all=torch.tensor(len(lengths)),
    )


def _scales(counts: Sequence[Tally]) -> dict[str, float]:
    """Return the factors by which totals grow if prompts were skipped that others are weighted for.

    They are those of the full rollout. The weights of a single step may add up to another number than its share of the
    prompts, and would scale its gradient by chance.
    """
    plain, weighted = ([sum(counted.sums[f"{kind}{name}"] for counted in counts) for name in _NAMES] for kind in _KINDS)
    return {name: new / old if old else 1.0 for name, old, new in zip(_NAMES, plain, weighted, strict=True)}


def _totals(counted: Tally, scales: Mapping[str, float], rollout: Rollout, number: int, trainer: Trainer) -> StepTotals:
    steps = trainer.estimated_stepping_batches
    return StepTotals(
        completions=counted.sums["completions"] * scales["completions"],
        tokens=counted.sums["tokens"] * scales["tokens"],
        progress=None if math.isinf(steps) else min((trainer.global_step + number) / steps, 1.0),
        reward_mean=rollout.metrics["reward"],
        reward_std=rollout.metrics["reward_std"],
    )


def _has_gradient(advantages: Tensor) -> Tensor:
    """Return a mask of the completions with an advantage other than 0; shape `batch`."""
    return advantages != 0 if advantages.ndim == 1 else (advantages != 0).any(dim=-1)
