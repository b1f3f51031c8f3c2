"""The command line: Lightning's own, with the run folder and its checkpoints set up."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import transformers
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_modules.callbacks.progress import TrainingProgressBar
from lightning_modules.callbacks.report import RunReport, print_table
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.policy_module import PolicyModule

_TRAINER_DEFAULTS = {
    "default_root_dir": "runs/run",
    "max_epochs": -1,
    "max_steps": 200,
    "gradient_clip_val": 1.0,
    "check_val_every_n_epoch": 1_000_000,  # held-out prompts are the report's
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "logger": False,
    "log_every_n_steps": 1,  # of another logger
}

_DESCRIPTION = (
    "Train with `fit`. Besides the subcommands: `plan` prints the memory that a `fit` with the same arguments takes, "
    "`evaluate RUN` measures a finished run, and `serve MODEL` starts a vLLM server."
)

_REMEDY = (
    "Pass the import path of a class or function, such as aggregate_po.recipes.gmpo; a file of your own must stand in "
    "the working folder or be installed."
)


class PolicyArgumentParser(LightningArgumentParser):
    """Says what is wrong without a page of usage around it."""

    def print_usage(self, file: Any = None) -> None:
        """Nothing: an error message must be found, and `--help` lists every option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Add the remedy to the parser's account of an option that is unknown or an import path that leads nowhere."""
        if re.fullmatch("Option '[^']*' is not accepted", message):
            # Each class or function has a parser of its own, which knows what it accepts.
            options = [action.dest for action in self._actions if action.dest.split(".")[-1] != "help"]
            message += f"; pass one of {', '.join(options)}" if options else "; there are no options"
        if any(sign in message for sign in ("No module named", "has no attribute", "Expected a dot import path")):
            # The parser of an outer class passes on what that of an inner one said.
            lines = [line for line in message.splitlines() if line.strip() != _REMEDY]
            message = "\n".join([*lines, _REMEDY])
        super().error(message, ex)


class SaveFitConfig(SaveConfigCallback):
    """Keeps the configuration that a run was trained with in its folder; measuring it later leaves the file alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file at the beginning of a fit."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it there whatever logger there is, since `evaluate` looks for it."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, skip_none=False, overwrite=True, multifile=False)


class PolicyCLI(LightningCLI):
    """`fit`, `validate` and the rest, for a `PolicyModule` and a `RolloutDataModule`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the report and the checkpoint, both in the run folder; one seed serves the whole run."""
        parser.add_lightning_class_args(RunReport, "report")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=_checkpoint_folder)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def instantiate_classes(self) -> None:
        """Build everything; an argument that a constructor refuses ends the program with its message alone."""
        with ended_by_its_message():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Write checkpoints atomically, whatever other plugins the configuration names."""
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    def before_fit(self) -> None:
        """Refuse to write over another run.

        Raises:
            SystemExit: the run folder has metrics, and no checkpoint to resume from was named.
        """
        folder = Path(self.trainer.default_root_dir)
        if self._get(self.config, "ckpt_path") is None and (folder / "metrics.csv").exists():
            raise SystemExit(
                f"error: `trainer.default_root_dir` is {str(folder)!r}, which already holds a run; resume it with "
                "`--ckpt_path last`, or choose another folder with `--trainer.default_root_dir`."
            )


@contextmanager
def ended_by_its_message() -> Iterator[None]:
    """End the program where an argument is refused, with the message of the error alone.

    Raises:
        SystemExit: an argument is refused.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def run(arguments: list[str] | None = None, command_line: type[PolicyCLI] = PolicyCLI) -> PolicyCLI:
    """Run the command line, with the arguments of the process unless others are given."""
    # A user's aggregator is named by its import path, and its file usually stands in the working folder.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    transformers.utils.logging.disable_progress_bar()
    # The policy is in eval mode on purpose: dropout would make its log-probabilities differ from the sampler's.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    return command_line(
        PolicyModule,
        RolloutDataModule,
        parser_class=PolicyArgumentParser,
        args=arguments,
        seed_everything_default=0,
        auto_configure_optimizers=False,  # the parameters exist only once the trainer has loaded the model
        parser_kwargs={"prog": "aggregate-po", "description": _DESCRIPTION},
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={**_TRAINER_DEFAULTS, "callbacks": [TrainingProgressBar()]},
    )


def evaluate_run(folder: str, *options: str) -> dict[str, float]:
    """Measure the exported model of a run on its held-out prompts, and print the table.

    Args:
        folder: of the run.
        options: of the command line, over the configuration of the run; such as another engine.

    Raises:
        SystemExit: the folder holds no finished run.
    """
    run_folder = Path(folder)
    for name in ("config.yaml", "model"):
        if not (run_folder / name).exists():
            raise SystemExit(f"error: RUN is {folder!r}, which has no {name!r}; pass the folder of a finished run.")
    config, model = run_folder / "config.yaml", run_folder / "model"
    # The folder has its adapters already. Nothing is drawn ahead of a measurement, and not every engine could.
    model_options = [f"--model.model_name={model}", "--model.lora=null"]
    fixed = [f"--config={config}", *model_options, "--data.overlap=false", "--verbose=false"]
    cli = run(["validate", *fixed, *options])
    figures = {name.removeprefix("val/"): value.item() for name, value in cli.trainer.callback_metrics.items()}
    print_table({"measured": figures})
    return figures


def _checkpoint_folder(root: str | None) -> str:
    return str(Path(root or ".") / "checkpoints")
