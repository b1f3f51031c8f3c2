"""Evaluation of the held-out prompts within a `fit`, by the validation loop of Lightning."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Evaluate the current policy on the held-out prompts, from a hook of a callback.

    It runs Lightning's validation loop, so callbacks that act on a validation see this one. The random state is
    restored, so a run trains the same however often it is evaluated.

    Returns:
        The metrics `reward_...`, `mean_length_...`, for rewards of 0 and 1 `pass@1_...`, and for several rewards
        `rewards/NAME_...`, for each evaluation; empty without held-out prompts.
    """
    module: Any = trainer.lightning_module
    connector: Any = trainer._logger_connector
    module.held_out_metrics = {}
    if getattr(trainer.datamodule, "validation", trainer) is None:  # type: ignore[attr-defined]
        return {}  # Lightning would warn of an empty data loader
    first_batch = connector._first_loop_iter  # of training; the loop sets its own
    trainer.validating = True
    with isolate_rng():
        trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first_batch
    return dict(module.held_out_metrics)


def take_over_validation(trainer: Trainer) -> bool:
    """Whether Lightning validates after this micro-batch, by the flags of the trainer; if so, keep it from that.

    Lightning validates after the checkpoint of the same step, and a run killed between the two would resume without
    the validation. The caller evaluates instead, before the checkpoint.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    due = bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher))
    loop._skip_next_val = due
    return due
