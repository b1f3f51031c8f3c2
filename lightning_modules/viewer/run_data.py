"""Runs of run folders: configuration, metrics, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_modules.callbacks.completion_rows import completion_files
from lightning_modules.callbacks.metrics_file import read_metrics
from lightning_modules.run_config import newest_config
from lightning_modules.token_rows import token_files
from lightning_modules.viewer.report import Run
from lightning_modules.viewer.run_facts import cohort_of, facts_of

_WITHOUT_COMPLETIONS = (
    "no completions were kept; train with `--trainer.callbacks+=lightning_modules.CompletionsFile` to see them."
)
_WITHOUT_TOKENS = (
    "no token numbers were kept; train with `--trainer.callbacks+=lightning_modules.TokenWeightsFile` for heat maps."
)
_WITHOUT_METRICS = "no metrics.csv, so no metrics are shown."
_WITHOUT_CONFIG = "no config.yaml, so objective, model and data are not known; `aggregate-po fit` writes it."


def read_run(folder: Path, name: str) -> tuple[Run, dict[str, Any]]:
    """Return the run of a folder, without its completions, and its recorded configuration, empty without one.

    Args:
        folder: run folder.
        name: name of the run on the page.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a file is damaged.
    """
    files, rows = completion_files(folder), token_files(folder)
    metrics_file = folder / "metrics.csv"
    if not (files or rows or metrics_file.is_file()):
        found = "which is not a folder" if not folder.is_dir() else "which has neither metrics.csv nor completions"
        raise FileNotFoundError(
            f"`runs` has {str(folder)!r}, {found}; pass the folder of a run, its `trainer.default_root_dir`."
        )
    config = _config(folder)
    steps, metrics = read_metrics(metrics_file) if metrics_file.is_file() else ([], {})
    notes = [] if metrics else [_WITHOUT_METRICS]
    notes += [] if config else [_WITHOUT_CONFIG]
    notes += [] if files or rows else [_WITHOUT_COMPLETIONS]
    notes += [] if rows else [_WITHOUT_TOKENS]
    facts = facts_of(config) | ({"optimizer steps": f"{max(steps):,}"} if steps else {})
    seed = str(config["seed_everything"]) if config.get("seed_everything") is not None else ""
    return Run(name, facts, seed, cohort_of(config), steps, metrics, notes), config


def _config(folder: Path) -> dict[str, Any]:
    """Return the recorded configuration of a run; empty without one."""
    if not (folder / "config.yaml").is_file():
        return {}
    file = newest_config(folder)
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable YAML ({error}); restore it, or move it away.") from None
    return config if isinstance(config, dict) else {}
