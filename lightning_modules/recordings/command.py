"""`aggregate-po record`: the rollouts of a job with everything that its training steps compute."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionYesNo, Namespace
from jsonargparse.typing import register_type
from lightning import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_modules.callbacks.checkpoint_files import LAST
from lightning_modules.callbacks.checkpoints import RunCheckpoint
from lightning_modules.callbacks.report import RunReport
from lightning_modules.callbacks.selection import act_when_measured
from lightning_modules.cli import PolicyCLI, run
from lightning_modules.errors import ended_by_its_message
from lightning_modules.interruption import interrupt_from_here
from lightning_modules.recorded_config import require_recordable
from lightning_modules.recordings.recorder import RolloutRecorder, require_new, require_one_device
from lightning_modules.recordings.recording import Recording
from lightning_modules.run_config import checkpoint_folder, checkpoint_path, newest_config

_DESCRIPTION = (
    "Train as a `fit` with the same arguments would, for a few rollouts, and record them: tokens, rewards, advantages, "
    "log-probabilities of sampler, old and current policy, gradient weights of each optimizer step, and the policy "
    "before the last one. Only --run, --rollouts, --output, --reference and --every_completion are arguments of the "
    "recording alone. Neither checkpoints nor metrics are written, and nothing in the run folder changes."
)
_OPTIONS = {
    "run": "Folder of a run to record from its last checkpoint, in place of --config and --ckpt_path; not in a file.",
    "rollouts": "Number of rollouts to record.",
    "output": "Folder to write, which must not exist.",
    "reference": "Whether to record log-probabilities under the start model, for objectives with a KL penalty.",
    "every_completion": "Whether to record completions of advantage 0 in the optimizer steps too, for objectives with "
    "a penalty or a group objective. They cost a forward and a backward pass, and do not change the training.",
}


class RunFolder(str):
    """Folder of a run on the command line, where `with_run` replaces it before the arguments are parsed."""


def _refused(value: object) -> str:
    """Refuse a run that is not on the command line.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"`run` is {value!r} in a configuration file; pass --run on the command line instead.")


register_type(RunFolder, deserializer=_refused)


class RecordCLI(PolicyCLI):
    """Command line with the arguments of `fit` that records rollouts."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the recording."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--run", type=RunFolder | None, default=None, help=_OPTIONS["run"])
        parser.add_argument("--rollouts", type=int, default=1, help=_OPTIONS["rollouts"])
        parser.add_argument("--output", type=str, required=True, help=_OPTIONS["output"])
        for name in ("reference", "every_completion"):
            parser.add_argument(f"--{name}", action=ActionYesNo, nargs="?", default=False, help=_OPTIONS[name])

    @staticmethod
    @override
    def descriptions() -> dict[str, str]:
        """Return the description of the recording."""
        return {"fit": _DESCRIPTION}

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Return `fit` alone, because a recording has the arguments of `fit`."""
        return {"fit": PolicyCLI.subcommands()["fit"]}

    @override
    def before_instantiate_classes(self) -> None:
        """Keep the configuration for the folder, and let the training write nothing elsewhere."""
        config = self._config
        with ended_by_its_message():
            require_recordable(self._parser("fit"), config)
            require_new(Path(config.output))
            act_when_measured(config.trainer.callbacks if isinstance(config.trainer.callbacks, list) else [])
            self._text = self._configuration()
            path = checkpoint_path(config)
            config.ckpt_path = None if path is None else str(path)
            self._raise_limits(path)
        self._scratch = tempfile.TemporaryDirectory(prefix="record-")
        config.trainer.default_root_dir = self._scratch.name
        config.trainer.logger, config.trainer.limit_val_batches = False, 0

    def _configuration(self) -> str:
        """Return the configuration of the training alone, as YAML that `fit` can read."""
        shown = Namespace({name: value for name, value in vars(self._config).items() if name not in _OPTIONS})
        text: str = self._parser("fit").dump(shown, skip_none=False, skip_validation=True)
        return text

    def _raise_limits(self, path: Path | None) -> None:
        """Let a training that is at its end, or close to it, go on until the rollouts are recorded."""
        config, trainer = self._config, self._config.trainer
        steps = config.data.updates_per_rollout * config.data.epochs_per_rollout
        step, epoch = (0, 0) if path is None or not path.is_file() else _place_of(path)
        # The checkpoint may have begun a rollout, which is an epoch of Lightning.
        rollouts = config.rollouts + (path is not None)
        for name, needed in (
            ("max_steps", step + steps * rollouts - (path is not None)),
            ("max_epochs", epoch + rollouts),
        ):
            if (given := getattr(trainer, name)) is not None and 0 <= given < needed:
                rank_zero_info(f"`trainer.{name}` is {given}; it is raised to {needed}.")
                setattr(trainer, name, needed)
        if trainer.max_time is not None:
            rank_zero_info(f"`trainer.max_time` is {trainer.max_time}; it is left out: a recording ends by `rollouts`.")
            trainer.max_time = None

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        kept = [one for one in [*given, *callbacks] if not isinstance(one, (RunReport, RunCheckpoint))]
        options = self._config
        recorder = RolloutRecorder(options.output, options.rollouts, self._text)
        return super()._instantiate_trainer({**config, "callbacks": [*kept, recorder]}, [])

    @override
    def before_fit(self) -> None:
        """Check the checkpoint, and ask for what the recording adds."""
        with ended_by_its_message():
            require_one_device(self.trainer)
            self._require_checkpoint()
        if self._config.reference:
            self.model.policy.keep_reference()
        self.datamodule.keeps_every_completion = self._config.every_completion
        # The checkpoint of a run has the states of callbacks that a recording leaves out.
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
        interrupt_from_here()

    @override
    def after_fit(self) -> None:
        """Say what was recorded."""
        manifest = Recording(self._config.output).manifest
        rollouts, steps = (
            _counted(*pair) for pair in ((manifest.rollouts, "rollout"), (len(manifest.steps), "optimizer step"))
        )
        print(f"recorded {rollouts}, {steps}: {self._config.output}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def record_command(arguments: Sequence[str]) -> None:
    """Record rollouts, with the arguments of `fit`."""
    with ended_by_its_message():
        expanded = with_run(arguments)
    run(["fit", *expanded], RecordCLI)


def with_run(arguments: Sequence[str]) -> list[str]:
    """Return arguments with `--run RUN` replaced by the configuration and the last checkpoint of the run.

    Raises:
        FileNotFoundError: the run has neither.
        ValueError: there are several runs.
    """
    words = [word for argument in arguments for word in _split(argument)]
    if (count := words.count("--run")) > 1:
        raise ValueError(f"`run` is given {count} times; pass --run once, and record each run into its own folder.")
    if "--run" not in words[:-1]:
        return list(arguments)
    place = words.index("--run")
    folder, rest = Path(words[place + 1]), words[:place] + words[place + 2 :]
    checkpoint = Path(checkpoint_folder(str(folder))) / LAST
    for path in (folder / "config.yaml", checkpoint):
        if not path.exists():
            raise FileNotFoundError(
                f"`run` is {str(folder)!r}, which has no {path.relative_to(folder)}; pass the folder of a run with a "
                "checkpoint, or pass --config."
            )
    return [f"--config={newest_config(folder)}", f"--ckpt_path={checkpoint}", *rest]


def _split(argument: str) -> list[str]:
    return argument.split("=", maxsplit=1) if argument.startswith("--run=") else [argument]


def _place_of(path: Path) -> tuple[int, int]:
    """Return optimizer step and epoch of a checkpoint; 0 if it cannot be read, which is an error later."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(checkpoint["global_step"]), int(checkpoint["epoch"])
    except Exception:
        return 0, 0
