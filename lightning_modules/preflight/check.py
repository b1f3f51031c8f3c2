"""Sampling from the start model of a run, and the findings about it."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from torch import Tensor

from lightning_modules.data.notices import Notices
from lightning_modules.distributed import data_parallel_size
from lightning_modules.preflight.findings import Disagreement, Findings, shorter
from lightning_modules.preflight.trial_rollout import TrialData, TrialRollout
from lightning_modules.rewards import Reward, WeightedRewards

_SHOWN = 5  # completions on which the graders differ


def preflight(
    trainer: Trainer,
    module: LightningModule,
    data: TrialData,
    completions: int = 256,
    other_reward: Reward | None = None,
) -> Findings:
    """Sample completions of training prompts from the start model, and return what they say about a run.

    Args:
        trainer: trainer of the run.
        module: module of the run; its model is not changed.
        data: data of the run.
        completions: number of completions, rounded up to whole groups on each rank.
        other_reward: second reward function, to compare with that of the run.

    Raises:
        ValueError: `completions` is less than 1.
    """
    if completions < 1:
        raise ValueError(f"`completions` is {completions}; pass 1 or more.")
    ranks = data_parallel_size(trainer)
    data.prompts_of_trial = -(-completions // (data.group_size * ranks)) * ranks
    trainer.validate(module, data, verbose=False)
    assert data.trial is not None
    plan = data.update_plan(data.policy.layout, trainer.accumulate_grad_batches)
    Notices(data.max_completion_length, data.truncated).before_training(plan, data.samples_from_old_policy)
    other = None if other_reward is None else _disagreement(data.trial, data.rewards, other_reward)
    return Findings.of(data.trial, other)


def _disagreement(trial: TrialRollout, rewards: WeightedRewards, other: Reward) -> Disagreement:
    second = WeightedRewards(other)
    first, known = _graded(rewards, trial)
    values, known_too = _graded(second, trial)
    second.close()
    both = known & known_too
    rows = (both & (first != values)).nonzero().squeeze(-1).tolist()
    examples = [
        f"{float(first[row]):.3g} and {float(values[row]):.3g}: {shorter(trial.texts[row])!r}" for row in rows[:_SHOWN]
    ]
    return Disagreement(second.names[0], len(rows), int(both.sum()), examples)


def _graded(rewards: WeightedRewards, trial: TrialRollout) -> tuple[Tensor, Tensor]:
    """Return the total reward of each completion of this rank, and whether no verdict that it needs failed."""
    scores = rewards.scores(trial.texts, trial.examples)
    return rewards.total(scores.components), ~scores.failed
