"""Command line: the Lightning CLI with a run folder, checkpoints and a report."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import transformers
import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionYesNo, Namespace
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from aggregate_po import __version__
from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.callbacks.checkpoint_files import require_last, require_undamaged
from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_modules.callbacks.metrics_file import has_steps
from lightning_modules.callbacks.report import RunReport, print_table
from lightning_modules.callbacks.selection import act_when_measured, selected_callbacks
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.data.staged import StagedDataModule
from lightning_modules.errors import ended_by_its_message
from lightning_modules.interruption import interrupt_from_here
from lightning_modules.objective_module import ObjectiveModule
from lightning_modules.option_help import prepare_import_paths
from lightning_modules.policy_module import PolicyModule
from lightning_modules.recorded_config import require_recordable
from lightning_modules.resumption import accepted_changes, run_configuration, saved_configuration
from lightning_modules.run_config import SaveFitConfig, checkpoint_folder, checkpoint_path, expand_user, newest_config
from lightning_modules.run_folder import lock_run_folder

_TRAINER_DEFAULTS = {
    "default_root_dir": "runs/run",
    "max_epochs": -1,
    "max_steps": 200,
    "gradient_clip_val": 1.0,
    "check_val_every_n_epoch": 1_000_000,  # `RunReport` evaluates held-out prompts
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "logger": False,
    "log_every_n_steps": 1,  # for loggers other than `metrics.csv`
}

_DESCRIPTION = (
    "Train with `fit`; `example` prints a configuration to begin with. Further subcommands: `plan` estimates the "
    "memory of a `fit` with the same arguments, "
    "`preflight` samples from its start model and says whether it can learn, `evaluate RUN` evaluates a finished run "
    "on its held-out prompts, `view RUN` shows runs on an HTML page, `record` keeps rollouts with what training "
    "computes on them, `compare FOLDER` evaluates objectives on these, `audit-reward FILE` compares two graders, "
    "`serve MODEL` starts a vLLM server, and `flow fit` trains a flow-matching model."
)

_FIT = (
    "Train a policy on its own completions. The results are in the run folder, `--trainer.default_root_dir`. After an "
    "option such as `--model.objective.help`, name a class or a recipe to see its options."
)
_VALIDATE = "Evaluate the policy that the configuration describes on the held-out prompts, without training."


class PolicyCLI(LightningCLI):
    """Lightning CLI (`fit`, `validate`, ...) for a `PolicyModule` and a `RolloutDataModule`.

    Attributes:
        program: name of the program in its help.
        description: description of the program in its help.
    """

    program = "aggregate-po"
    description = _DESCRIPTION

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Return `fit` and `validate`; the data module has neither a test set nor prompts to predict for."""
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    @staticmethod
    def descriptions() -> dict[str, str]:
        """Return the description of each subcommand, for its `--help`."""
        return {"fit": _FIT, "validate": _VALIDATE}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the report and of the checkpoint, and link the seed and the run folder."""
        parser.add_lightning_class_args(RunReport, "report")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.add_argument(
            "--resume_with_changes",
            action=ActionYesNo,
            nargs="?",
            default=False,
            help="Whether a resume with `--ckpt_path` applies a configuration other than that of its checkpoint, such "
            "as another learning rate, rather than refuse it.",
        )
        parser.link_arguments("resume_with_changes", "model.resume_with_changes")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and expand `~` in paths before anything reads them."""
        super().parse_arguments(parser, args)
        expand_user(self.config[self.config.subcommand])

    @override
    def before_instantiate_classes(self) -> None:
        """Decide when callbacks act; for a `fit`, check that `config.yaml` can record it, and lock the run folder."""
        callbacks = self._get(self.config, "trainer.callbacks") or []
        act_when_measured(callbacks if isinstance(callbacks, list) else [callbacks])
        if self.subcommand != "fit":
            return
        folder = self._get(self.config, "trainer.default_root_dir")
        with ended_by_its_message():
            require_recordable(self._parser(self.subcommand), self.config[self.subcommand])
            if folder is not None and _is_first_process():
                lock_run_folder(folder)

    @override
    def instantiate_classes(self) -> None:
        """Instantiate all classes; an invalid argument ends the program with its error message, without a traceback."""
        with ended_by_its_message(instantiating=True):
            super().instantiate_classes()
        said = json.loads(self._parser(self.subcommand).dump(self._config, format="json", skip_none=False))
        self.model.configuration, self.datamodule.configuration = said["model"], said["data"]

    @property
    def _config(self) -> Namespace:
        return self.config[self.subcommand]

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with ended_by_its_message():
            super()._run_subcommand(subcommand)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add `AtomicCheckpointIO` unless the configuration names another checkpoint plugin."""
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        if self._get(self.config_init, "trainer.barebones"):
            kwargs = {"log_every_n_steps": None, **kwargs}
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        config = {**config, "callbacks": selected_callbacks([*given, *callbacks], config)}
        return super()._instantiate_trainer(config, [])

    @override
    def _parse_ckpt_path(self) -> None:
        """Take no arguments from the checkpoint, which Lightning would load for them."""

    def before_fit(self) -> None:
        """Refuse to overwrite another run, and to resume from a checkpoint that is damaged or of another configuration.

        Raises:
            SystemExit: the run folder has a completed optimizer step, and `ckpt_path` is not set; or the checkpoint is
                refused.
        """
        folder = Path(self.trainer.default_root_dir)
        holds_run = has_steps(folder / "metrics.csv") or (folder / "checkpoints" / "last.ckpt").exists()
        if self._get(self.config, "ckpt_path") is None and holds_run:
            raise SystemExit(
                f"error: `trainer.default_root_dir` is {str(folder)!r}, which already holds a run; resume it with "
                "`--ckpt_path last`, or choose another folder with `--trainer.default_root_dir`."
            )
        if _is_first_process():
            with ended_by_its_message():
                self._require_checkpoint()

        interrupt_from_here()

    def before_validate(self) -> None:
        """Clean up after signals from here on."""
        interrupt_from_here()

    def after_fit(self) -> None:
        """End with a status other than 0 if the time limit has stopped the run, unless the job is queued again."""
        checkpoint = self._get(self.config_init, "checkpoint")
        if checkpoint.received is not None and not checkpoint.requeued and self.trainer.is_global_zero:
            raise SystemExit(128 + checkpoint.received)

    def _require_checkpoint(self) -> None:
        """Check the checkpoint to resume from before other processes are started and the model is loaded."""
        path = checkpoint_path(self._config)
        if path is None:
            return
        if self._config.ckpt_path == "last":
            require_last(path.parent)
        else:
            require_undamaged(path)
        if path.exists() and (saved := saved_configuration(path)) is not None:
            current = run_configuration(self.trainer, self.model, self.datamodule)
            accepted_changes(saved, current, self._config.resume_with_changes, sharded=path.is_dir())


def run(
    arguments: list[str] | None = None,
    command_line: type[PolicyCLI] = PolicyCLI,
    data: type[StagedDataModule] = RolloutDataModule,
    module: type[ObjectiveModule] = PolicyModule,
) -> PolicyCLI:
    """Run the command line with the given arguments, or with those of the process when None.

    Args:
        arguments: arguments of the command line.
        command_line: class of the command line.
        data: class of the data module.
        module: class of the module that is trained.
    """
    prepare_import_paths(sys.argv[1:] if arguments is None else arguments)
    transformers.utils.logging.disable_progress_bar()
    # The policy is in eval mode: dropout would make its log-probabilities differ from those of the sampler.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    return command_line(
        module,
        data,
        parser_class=PolicyArgumentParser,
        args=arguments,
        seed_everything_default=0,
        auto_configure_optimizers=False,  # the parameters exist only once the trainer has loaded the model
        parser_kwargs={"prog": command_line.program, "description": command_line.description, "version": __version__}
        | {name: {"description": text} for name, text in command_line.descriptions().items()},
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults=_TRAINER_DEFAULTS,
    )


def evaluate_run(folder: str, *options: str) -> dict[str, float]:
    """Evaluate the exported model of a run on its held-out prompts, and print a table of the metrics.

    Args:
        folder: the run folder.
        options: command-line options that override the configuration of the run, such as another engine.

    Returns:
        The metrics by name.

    Raises:
        SystemExit: the folder does not hold a finished run.
    """
    run_folder = Path(folder)
    for name in ("config.yaml", "model"):
        if not (run_folder / name).exists():
            raise SystemExit(
                f"error: RUN is {folder!r}, which has no {name!r}; pass the folder of a finished run, or two folders "
                "of evaluations to compare."
            )
    config, model = newest_config(run_folder), run_folder / "model"
    if "model_name" not in (yaml.safe_load(config.read_text(encoding="utf-8")).get("model") or {}):
        checkpoint = run_folder / "checkpoints" / "last.ckpt"
        raise SystemExit(
            f"error: RUN is {folder!r}, which trains no language model; measure a flow-matching model with "
            f"`aggregate-po flow validate --config {config} --ckpt_path {checkpoint}`."
        )
    # The exported model includes its adapters, and is that of the end, not of the checkpoint that the run resumed from.
    model_options = [f"--model.model_name={model}", "--model.lora=null", "--ckpt_path=null"]
    # An evaluation samples nothing ahead, and not every engine could.
    fixed = [f"--config={config}", *model_options, "--data.overlap=false", "--verbose=false"]
    cli = run(["validate", *fixed, *options])
    metrics: dict[str, float] = cli.model.held_out_metrics
    print_table({"measured": metrics})
    return metrics


def _is_first_process() -> bool:
    """Whether this process is rank 0, or will be; the launcher of Lightning numbers nodes by NODE_RANK."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _seed(seed_everything: int | bool | None) -> int:
    if seed_everything is True or not 0 <= int(seed_everything or 0) < 2**32:
        raise ValueError(
            f"`seed_everything` is {str(seed_everything).lower()}; pass a number from 0 to {2**32 - 1}, so that the "
            "run can be repeated."
        )
    return int(seed_everything or 0)
