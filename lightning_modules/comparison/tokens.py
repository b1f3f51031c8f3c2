"""The tokens of a recording in one table, and what each objective gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po import Evaluated, PolicyObjective, effective_sample_size
from aggregate_po.bounds import log_ratio_of
from lightning_modules.comparison.evaluation import evaluated_step
from lightning_modules.recordings.steps import RecordedStep


@dataclass(frozen=True)
class Tokens:
    """Trained tokens of recorded optimizer steps, those of a step next to each other; shapes `token`.

    A completion that is in several steps counts once in each.

    Args:
        log_ratio: log ratio of the policies of the step and of the rollout; float64; nats.
        position: position among the trained tokens of the completion, from 1.
        length: number of trained tokens of the completion.
        sign: sign of the advantage: 1, 0 or -1.
        completion: number of the completion in this table, from 0.
        step: number of the optimizer step in its run.
        update: number of the optimizer step among those of its rollout, from 1.
        update_of: update of each optimizer step, also of those without trained tokens.
    """

    log_ratio: Tensor
    position: Tensor
    length: Tensor
    sign: Tensor
    completion: Tensor
    step: Tensor
    update: Tensor
    update_of: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.log_ratio)

    @classmethod
    def of(cls, steps: Sequence[RecordedStep]) -> Tokens:
        """Return the trained tokens of some steps."""
        rows, completions = [], 0
        for step in steps:
            for part in step.batches:
                policy = part.batch.policy
                mask, advantages = policy.response_mask, policy.advantages
                signs = (
                    advantages.sign() if advantages.ndim == 2 else advantages.sign().unsqueeze(-1).expand(mask.shape)
                )
                number = completions + mask.any(dim=-1).cumsum(dim=0) - 1
                completions += int(mask.any(dim=-1).sum())
                columns = {
                    "log_ratio": log_ratio_of(part.log_probs.double(), policy.old_log_probs.double(), mask),
                    "position": mask.cumsum(dim=-1),
                    "length": mask.sum(dim=-1, keepdim=True).expand(mask.shape),
                    "sign": signs,
                    "completion": number.unsqueeze(-1).expand(mask.shape),
                    "step": torch.full(mask.shape, step.step),
                    "update": torch.full(mask.shape, step.update),
                }
                rows.append({name: column[mask] for name, column in columns.items()})
        columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return cls(**columns, update_of={step.step: step.update for step in steps})

    @property
    def completions(self) -> int:
        """Number of completions with trained tokens, counted once in each step."""
        return len(self.completion.unique())

    @property
    def updates(self) -> list[int]:
        """Numbers of the updates, in order."""
        return sorted({int(update) for update in self.update.unique()})


@dataclass(frozen=True)
class Weights:
    """Gradient weights of one objective on the tokens of a table; shapes `token` unless stated; float64.

    Args:
        total: gradient of the objective with respect to the log-probability of the token.
        relative: `total` over the weight of the same token where every ratio is 1; NaN where that is 0.
        clipped: True where a clip sets the gradient to zero.
        overflow: True where the bound on log ratios sets the gradient to zero.
        concentration_share: effective sample size of the concentration over the length of the token's completion.
        exponent: exponent that a rule chose for the token's completion; NaN without a rule.
        values: value of the objective, by number of the optimizer step.
    """

    total: Tensor
    relative: Tensor
    clipped: Tensor
    overflow: Tensor
    concentration_share: Tensor
    exponent: Tensor
    values: dict[int, float]


def weights_of(objective: PolicyObjective, steps: Sequence[RecordedStep]) -> Weights:
    """Return the weights that an objective gives to the tokens of some steps.

    Raises:
        ValueError: the objective reads what the recording lacks.
    """
    return _weights(objective, steps, lambda step: evaluated_step(objective, step))


def recorded_weights(objective: PolicyObjective | None, steps: Sequence[RecordedStep]) -> Weights:
    """Return the weights that the training steps have computed.

    Args:
        objective: objective that was trained, from which relative weights are computed; those are NaN when None.
        steps: recorded optimizer steps.
    """
    return _weights(objective, steps, lambda step: [part.evaluated for part in step.batches])


def _weights(
    objective: PolicyObjective | None,
    steps: Sequence[RecordedStep],
    evaluated: Callable[[RecordedStep], list[Evaluated]],
) -> Weights:
    rows, values = [], {}
    for step in steps:
        results = evaluated(step)
        on_policy = [None] * len(results) if objective is None else evaluated_step(objective, step, on_policy=True)
        values[step.step] = sum(float(result.value) for result in results)
        for part, result, reference in zip(step.batches, results, on_policy, strict=True):
            rows.append(_columns(part.batch.policy.response_mask, result, reference))
    return Weights(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]}, values=values)


def _columns(mask: Tensor, result: Evaluated, on_policy: Evaluated | None) -> dict[str, Tensor]:
    """Return the columns of one micro-batch, on its trained tokens."""
    total = result.weights.total.double()
    base = torch.zeros_like(total) if on_policy is None else on_policy.weights.total.double()
    share = effective_sample_size(result.weights.concentration.double()) / mask.sum(dim=-1).clamp(min=1)
    exponents = share.new_full(share.shape, torch.nan) if result.exponents is None else result.exponents.double()
    columns = {
        "total": total,
        "relative": torch.where(base == 0, torch.nan, total / base),
        "clipped": result.weights.clipped,
        "overflow": result.weights.overflow,
        "concentration_share": share.unsqueeze(-1),
        "exponent": exponents.unsqueeze(-1),
    }
    return {name: column.expand(mask.shape)[mask] for name, column in columns.items()}
