"""Callbacks of a run of the command line, as the flags of the trainer ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.callbacks.checkpoints import RunCheckpoint
from lightning_modules.callbacks.progress import TrainingProgressBar
from lightning_modules.callbacks.report import HELD_OUT


def selected_callbacks(callbacks: Sequence[Callback], flags: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks of a run: with its own progress bar if no other is given, and as the flags say.

    Args:
        callbacks: callbacks of the configuration, with `RunCheckpoint`.
        flags: arguments of the trainer; `enable_progress_bar`, `enable_checkpointing`, `barebones`
            and `fast_dev_run` are read.
    """
    barebones = bool(flags.get("barebones"))
    without_checkpoints = {
        "barebones=true": barebones,
        "fast_dev_run": bool(flags.get("fast_dev_run")),
        "enable_checkpointing=false": flags.get("enable_checkpointing") is False,
    }
    selected = list(callbacks)
    if any(without_checkpoints.values()):
        selected = [callback for callback in selected if not isinstance(callback, RunCheckpoint)]
        given = ", ".join(f"`{flag}`" for flag, is_given in without_checkpoints.items() if is_given)
        rank_zero_info(f"{given}: no checkpoint is saved, so this run cannot be resumed.")
    has_bar = any(isinstance(callback, ProgressBar) for callback in selected)
    if not has_bar and not barebones and flags.get("enable_progress_bar") is not False:
        selected.append(TrainingProgressBar())
    return selected


def act_when_measured(callbacks: Sequence[Any]) -> None:
    """Let callbacks act when their metric is measured: held-out metrics after an evaluation, others after a rollout.

    By itself Lightning's `EarlyStopping` waits for a validation, even with a metric of the training. An option that the
    user has set is kept.

    Args:
        callbacks: configurations of callbacks, with the arguments of their constructors; changed in place.
    """
    for callback in callbacks:
        arguments = getattr(callback, "init_args", None) or {}
        for option in ("check_on_train_epoch_end", "save_on_train_epoch_end"):
            if option in arguments and arguments[option] is None:
                arguments[option] = not (arguments["monitor"] or "").startswith(HELD_OUT)
