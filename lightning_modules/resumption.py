"""Record of a run's configuration in its checkpoints, and resumes with another configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from aggregate_po import PolicyObjective
from lightning_modules.configuration import Change, changes, with_contents
from lightning_modules.optimizer import OptimizerSettings
from lightning_modules.rest_of_rollout import reason_to_drop

_KEY = "configuration"
MODULE_STATE = "policy_module"  # key of the state of an `ObjectiveModule`
# What may change from one part of a run to the next, in addition to the flags of the trainer that are not listed below.
_FREE = {
    "model.max_skipped_steps",
    "model.resume_with_changes",
    "model.lora.export",
    "data.evaluations",
    "data.validation",
    "data.tokens_per_micro_batch",
    "data.evaluation_steps",
    "data.steps_per_micro_batch",
    "data.trajectories_at_once",
}
_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
_OPTIMIZATION = ("model.learning_rate", "model.weight_decay", "model.optimizer", "model.warmup_steps", "model.lr_")
_LENGTH_OF_ROLLOUT = ("data.updates_per_rollout", "data.epochs_per_rollout")
_OBJECTIVE = ("model.objective",)
_OF_THE_WEIGHTS = ("model.model", "model.lora")


class Resumption:
    """Record of the configuration of a run, and of its changes on a resume.

    Args:
        accept: whether a resume applies changes rather than refuse them.
    """

    def __init__(self, accept: bool) -> None:
        self.accept = accept
        self._configuration: dict[str, Any] | None = None
        self._changes: list[Change] = []
        self._settings: OptimizerSettings | None = None

    def configuration(self, trainer: Trainer) -> dict[str, Any]:
        """Return the configuration when this was first called, since files may change during a run."""
        if self._configuration is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._configuration = run_configuration(trainer, trainer.lightning_module, data)
        return self._configuration

    def prepare(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Remove from a checkpoint what changes make invalid, before it is loaded.

        Raises:
            ValueError: there are changes that are not accepted, or that cannot be applied.
        """
        if not trainer.training:
            return
        sharded = "optimizer_states" not in checkpoint
        self._changes = accepted_changes(checkpoint, self.configuration(trainer), self.accept, sharded)
        data_state = type(trainer.datamodule).__qualname__  # type: ignore[attr-defined]
        _remove_invalid(self._changes, checkpoint, data_state, cast(Any, trainer.lightning_module).objective)

    @property
    def changes_objective(self) -> bool:
        """Whether the objective is another one, so that the states of its penalties do not fit."""
        return bool(_names(self._changes, _OBJECTIVE))

    def noted(self, optimizer: Optimizer, schedule: Any) -> OptimizerLRScheduler:
        """Return a new optimizer with its schedule, for Lightning, after noting its hyperparameters."""
        self._settings = OptimizerSettings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def put_in_force(self, trainer: Trainer) -> None:
        """Replace the hyperparameters and the schedule of the checkpoint, if they have changed."""
        if self._settings is not None and _names(self._changes, _OPTIMIZATION):
            self._settings.put_in_force(trainer)
        self._changes = []


def run_configuration(trainer: Trainer, module: Any, data: Any) -> dict[str, Any]:
    """Return what trainer, module and data module are configured with, as plain values."""
    callbacks = [callback for callback in trainer.callbacks if hasattr(callback, _KEY)]  # type: ignore[attr-defined]
    settings = {name: getattr(trainer, name) for name in _TRAINER}
    settings["callbacks"] = {type(callback).__name__: callback.configuration for callback in callbacks}
    return configuration_of(getattr(module, _KEY, {}), getattr(data, _KEY, {}), settings)


def saved_configuration(path: Path) -> dict[str, Any] | None:
    """Return what a file or a folder of shards says about its run, without its weights; None if it says nothing.

    Raises:
        ValueError: it is the checkpoint of another program.
    """
    file = path / "meta.pt" if path.is_dir() else path
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, UnpicklingError):  # one of another kind
        return None
    require_of_a_run(checkpoint, path)
    return {_KEY: checkpoint[_KEY]} if _KEY in checkpoint else None


def require_of_a_run(checkpoint: Any, path: object) -> None:
    """Check that a checkpoint is that of a run, not of another program.

    Raises:
        ValueError: it has no state of a policy module.
    """
    if not isinstance(checkpoint, Mapping) or MODULE_STATE not in checkpoint:
        raise ValueError(
            f"`ckpt_path` is {str(path)!r}, which is no checkpoint of a run of this library; to begin a run with "
            "weights from elsewhere, pass their folder or hub id as `model.model_name`."
        )


def configuration_of(model: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration for a checkpoint: model and data by their contents, and no arguments of the engine."""
    engine = data.get("rollouts")
    return {
        "model": {name: with_contents(value) if name == "model_name" else value for name, value in model.items()},
        "data": {
            **data,
            "dataset": with_contents(data.get("dataset")),
            "rollouts": engine.get("class_path") if isinstance(engine, Mapping) else engine,
        },
        "trainer": dict(trainer),
    }


def changes_since(checkpoint: Mapping[str, Any], current: Mapping[str, Any]) -> list[Change] | None:
    """Return the differences that change the training; None if the checkpoint does not say how it was trained."""
    if _KEY not in checkpoint:
        return None
    saved = checkpoint[_KEY]
    return [
        change
        for part in ("model", "data", "trainer")
        # An argument that only one of the two has came with another version of the library.
        for name in current[part].keys() & saved[part].keys()
        for change in changes(saved[part][name], current[part][name], f"{part}.{name}", _FREE.__contains__)
    ]


def accepted_changes(
    checkpoint: Mapping[str, Any], current: Mapping[str, Any], accept: bool, sharded: bool = False
) -> list[Change]:
    """Return the changes to apply, after a line that names them.

    Args:
        checkpoint: checkpoint of the run.
        current: configuration of the resumed run.
        accept: whether changes are applied rather than refused.
        sharded: whether the checkpoint is a folder of shards.

    Raises:
        ValueError: there are changes that are not accepted, or that cannot be applied.
    """
    found = changes_since(checkpoint, current)
    if found is None:
        rank_zero_warn("the checkpoint does not say what it was trained with, so nothing was compared.")
    found = sorted(found or [], key=lambda change: change.name)
    named = "; ".join(map(str, found))
    fixed = [change for change in found if change.name.startswith(_OF_THE_WEIGHTS)]
    if fixed:
        raise ValueError(
            f"`ckpt_path` holds a run with another model: {named}. Its weights come from the checkpoint, so pass the "
            "old values; to train another model, start a new run in another folder."
        )
    if found and not accept:
        raise ValueError(
            f"`ckpt_path` holds a run with another configuration: {named}. Pass the old values, or apply the new ones "
            "with `--resume_with_changes`."
        )
    if sharded and _is_another_optimizer(found):
        raise ValueError(f"{named}, which a resume from a folder of shards cannot apply; pass the old optimizer.")
    if found:
        rank_zero_info(f"resuming with changes: {named}")
    return found


def _remove_invalid(
    found: Sequence[Change], checkpoint: dict[str, Any], data_state: str, objective: PolicyObjective
) -> None:
    if _names(found, _OPTIMIZATION):
        checkpoint["lr_schedulers"] = []
    if _is_another_optimizer(found):
        checkpoint["optimizer_states"] = []
        rank_zero_info("the new optimizer begins without state")
    buffer = checkpoint.get(data_state, {}).get("buffer", {})
    remaining = [state for states in buffer.get("left", ()) for state in states]
    if remaining and (reason := _reason_to_drop(found, checkpoint, remaining, objective)):
        buffer["left"] = [[] for _ in buffer["left"]]
        rank_zero_info(f"the rest of the current rollout is dropped, as {reason}")
    # Schemes store completions with their rewards, and statistics of prompts by their numbers in the data set.
    stages = buffer.get("stages", {})
    if any(name.startswith("scheme_") for name in stages) and set(_names(found, ("data.",))) - set(_LENGTH_OF_ROLLOUT):
        buffer["stages"] = {name: state for name, state in stages.items() if not name.startswith("scheme_")}
        rank_zero_info("the sampling schemes begin without what they have stored, as options of `data` have changed")


def _reason_to_drop(
    found: Sequence[Change],
    checkpoint: Mapping[str, Any],
    remaining: Sequence[Mapping[str, Any]],
    objective: PolicyObjective,
) -> str | None:
    """Return why the rest of a rollout cannot be trained on after the changes; None if it can."""
    if _names(found, _LENGTH_OF_ROLLOUT):
        return "the number of its updates has changed"
    if not _names(found, _OBJECTIVE):
        return None
    # Checkpoints of before do not say it.
    has_every_completion = checkpoint[MODULE_STATE].get("trains_every_completion", False)
    return reason_to_drop(remaining, objective, has_every_completion)


def _names(found: Sequence[Change], prefixes: tuple[str, ...]) -> list[str]:
    return [change.name for change in found if change.name.startswith(prefixes)]


def _is_another_optimizer(found: Sequence[Change]) -> bool:
    return any(change.name == "model.optimizer" for change in found)
