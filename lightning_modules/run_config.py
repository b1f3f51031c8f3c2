"""Configuration files of a run folder, and the checkpoint that a configuration resumes from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from lightning_modules.callbacks.checkpoint_files import LAST

_RESUME_OPTIONS = ("ckpt_path", "resume_with_changes", "weights_only")
_ADDED = re.compile(r"config-(?:(\d+)-)?from-.*\.yaml")  # older runs gave no numbers


class SaveFitConfig(SaveConfigCallback):
    """Saves the training configuration in the run folder; a later evaluation does not overwrite it."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file at the start of `fit` only."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration to the run folder, where `evaluate` looks for it, and send it to the loggers.

        A resumed run keeps all files, and writes another next to them if its configuration differs from the newest.
        """
        for logger in trainer.loggers:
            logger.log_hyperparams(json.loads(self.parser.dump(self.config, skip_none=False, format="json")))
        file, resumed = Path(trainer.default_root_dir) / self.config_filename, checkpoint_path(self.config)
        file.parent.mkdir(parents=True, exist_ok=True)
        if resumed is not None and resumed.exists() and file.exists():
            newest = newest_config(file.parent)
            if self._is_unchanged(newest):
                return
            file = file.with_name(f"config-{_order(newest)[0] + 1}-from-{resumed.resolve().stem}.yaml")
        else:
            for other in _added_configs(file.parent):
                other.unlink()
        self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=False)

    def _is_unchanged(self, file: Path) -> bool:
        """Whether the configuration is that of a file, except for the options of a resume."""
        first, second = (
            {name: value for name, value in yaml.safe_load(text).items() if name not in _RESUME_OPTIONS}
            for text in (file.read_text(encoding="utf-8"), self.parser.dump(self.config, skip_none=False))
        )
        return first == second


def expand_user(config: Namespace) -> None:
    """Replace `~` in the paths of run folder and checkpoint by the home folder, which shells do not do in a file."""
    for name in ("trainer.default_root_dir", "ckpt_path"):
        if config.get(name) is not None:
            config[name] = os.path.expanduser(config[name])


def checkpoint_path(config: Namespace) -> Path | None:
    """Return the local path of the checkpoint that a configuration resumes from, which need not exist; None without."""
    path = config.ckpt_path
    if path is None or "://" in str(path) or path in ("best", "hpc"):
        return None
    return Path(checkpoint_folder(config.trainer.default_root_dir)) / LAST if path == "last" else Path(path)


def checkpoint_folder(root: str | None) -> str:
    """Return the folder of the checkpoints of a run folder."""
    return str(Path(root or ".").expanduser() / "checkpoints")


def newest_config(folder: Path) -> Path:
    """Return the configuration that the last part of a run had; a resume with another one adds a file."""
    return max(_added_configs(folder), key=_order, default=folder / "config.yaml")


def _added_configs(folder: Path) -> list[Path]:
    """Return the configurations that resumes have added, `config-2-from-step-50.yaml` and so on."""
    return [file for file in folder.glob("config-*.yaml") if _ADDED.fullmatch(file.name)]


def _order(file: Path) -> tuple[int, list[int]]:
    """Return a key that rises with each resume: number and step; 1 is the number of files that have none."""
    match = _ADDED.fullmatch(file.name)
    return int(match[1] or 1) if match else 1, [int(digits) for digits in re.findall(r"\d+", file.name)]
