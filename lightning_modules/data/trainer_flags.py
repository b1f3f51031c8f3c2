"""Flags of the trainer that would split an optimizer step, or use a part of a rollout."""

from __future__ import annotations

from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from aggregate_po.arguments import require_non_negative
from lightning_modules.data.micro_batches import UpdatePlan


def require_whole_updates(trainer: Trainer, plan: UpdatePlan) -> None:
    """Check that every optimizer step of a `fit` gets all its micro-batches, and every rollout all its steps.

    Args:
        trainer: trainer whose flags are checked.
        plan: split of a rollout.

    Raises:
        ValueError: a flag of the trainer splits an optimizer step, or is not a number that it can be.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise ValueError(
            "`callbacks` has a GradientAccumulationScheduler, but a rollout is split into micro-batches before its "
            "first step; pass one `accumulate_grad_batches` instead, which changes memory and speed, and no gradient."
        )
    if trainer.gradient_clip_val is not None:
        require_non_negative(gradient_clip_val=trainer.gradient_clip_val)
    _require_whole_rollouts(trainer, plan)
    _require_validation_between_steps(trainer, plan)


def _require_whole_rollouts(trainer: Trainer, plan: UpdatePlan) -> None:
    flags: Any = trainer  # set by Lightning's `_init_debugging_flags`
    batches, limit = _micro_batches_of_rollout(plan), trainer.limit_train_batches
    if flags.overfit_batches:
        raise ValueError(
            f"`overfit_batches` is {flags.overfit_batches}, but each epoch is a new rollout; pass a `dataset` of a "
            "few prompts instead."
        )
    if flags.fast_dev_run:
        if int(flags.fast_dev_run) % plan.micro_batches:
            raise ValueError(
                f"`fast_dev_run` is {int(flags.fast_dev_run)}, a part of an optimizer step of {plan.micro_batches} "
                f"micro-batches; pass a multiple, such as fast_dev_run={plan.micro_batches}."
            )
    elif limit and _count(limit, batches) < batches:
        raise ValueError(
            f"`limit_train_batches` is {limit}, but a rollout has {batches} micro-batches, which are all trained on; "
            "leave it at 1.0, and pass `max_steps` for a short run, or a smaller rollout."
        )


def _require_validation_between_steps(trainer: Trainer, plan: UpdatePlan) -> None:
    interval: Any = trainer.val_check_interval
    if isinstance(interval, (int, float)) and _count(interval, _micro_batches_of_rollout(plan)) % plan.micro_batches:
        raise ValueError(
            f"`val_check_interval` is {interval}, which falls within an optimizer step of {plan.micro_batches} "
            "micro-batches; pass a multiple of them, or set `evaluate_every_n_steps` of RunReport."
        )


def _micro_batches_of_rollout(plan: UpdatePlan) -> int:
    return plan.updates * plan.epochs * plan.micro_batches


def _count(limit: int | float, batches: int) -> int:
    """Return a number of micro-batches that is given by itself or as a fraction of a rollout, as Lightning does."""
    return limit if isinstance(limit, int) else max(int(limit * batches), 1)
