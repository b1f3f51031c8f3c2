"""Runs of run folders: configuration, metrics, completions and numbers of their tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from lightning_modules.callbacks.completion_rows import completion_files
from lightning_modules.callbacks.metrics_file import read_metrics
from lightning_modules.parquet_files import read_rows, require_pyarrow
from lightning_modules.run_config import newest_config
from lightning_modules.token_rows import TokenRow, token_files
from lightning_modules.viewer.completion_facts import completion_of_row, completion_of_token_row
from lightning_modules.viewer.report import Completion, Run
from lightning_modules.viewer.run_facts import cohort_of, facts_of
from lightning_modules.viewer.selection import Budget, spread
from lightning_modules.viewer.token_numbers import token_numbers

Key = tuple[int, int, int]  # first step of the rollout, group, sample

_KEY_COLUMNS = ("group", "sample", "length")
_COMPLETION_COLUMNS = {"step", "group", "sample", "prompt", "completion"}
_WITHOUT_COMPLETIONS = (
    "no completions were kept; train with `--trainer.callbacks+=lightning_modules.CompletionsFile` to see them."
)
_WITHOUT_TOKENS = (
    "no token numbers were kept; train with `--trainer.callbacks+=lightning_modules.TokenWeightsFile` for heat maps."
)
_WITHOUT_METRICS = "no metrics.csv, so no metrics are shown."
_WITHOUT_CONFIG = "no config.yaml, so objective, model and data are not known; `aggregate-po fit` writes it."


@dataclass
class RunData:
    """Content of a run folder.

    Args:
        run: run with its metrics.
        config: recorded configuration; empty without one.
        completions: completions that are shown, in the order of steps and groups.
        kept: number of completions that the folder has.
        token_rows: number of rows of token numbers that the folder has.
        shown_token_rows: number of rows of token numbers that are shown.
    """

    run: Run
    config: dict[str, Any] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)
    kept: int = 0
    token_rows: int = 0
    shown_token_rows: int = 0


def read_run(folder: Path, name: str, completions: Budget, tokens: Budget) -> RunData:
    """Read a run folder.

    Args:
        folder: run folder.
        name: name of the run on the page.
        completions: number of completions that the page may still show; 0 reads none.
        tokens: number of tokens whose numbers the page may still show; 0 reads none.

    Raises:
        FileNotFoundError: the folder holds no run.
        ImportError: the run has completions, and pyarrow is not installed.
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
    run = Run(name, facts, seed, cohort_of(config), steps, metrics, notes)
    data = RunData(run, config)
    share, token_share = completions.next_share(), tokens.next_share()
    if (files or rows) and share:
        require_pyarrow(f"{folder}: showing its completions", "show the metrics alone with `--max_completions 0`")
        _read_completions(data, files, rows, share, token_share)
        completions.use(len(data.completions))
        tokens.use(sum(len(each.texts) for one in data.completions for each in one.tokens))
    return data


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


def _read_completions(
    data: RunData, files: dict[int, Path], token_rows: dict[int, Path], share: int, token_share: int
) -> None:
    """Add the completions with token numbers, then others, evenly over the rollouts."""
    lengths: dict[Key, int | None] = {}
    for start, path in files.items():
        lengths.update({_key(start, row): row.get("length") for row in _rows(path, {"group", "sample"}, _KEY_COLUMNS)})
    rows = _token_rows(data, token_rows, share, token_share)
    starts = _starts(sorted(files), lengths, [row for row, _ in rows])
    found: dict[Key, Completion] = {}
    for row, numbers in rows:
        key = _key(starts[row["step"]], row)
        shown = found.setdefault(key, completion_of_token_row(row, key[0]))
        found[key] = replace(shown, tokens=(*shown.tokens, numbers))
    keys = list(lengths)
    others = [key for key in keys if key not in found]
    chosen = set(spread(others, share - len(found), lambda key: key[:2], lambda key: 1)) | found.keys()
    starts_of_chosen = {start for start, _, _ in chosen}
    for start, path in files.items():
        for kept in _rows(path, _COMPLETION_COLUMNS) if start in starts_of_chosen else ():
            if (key := _key(start, kept)) in chosen:
                found[key] = completion_of_row(kept, key, found[key].tokens if key in found else ())
    data.kept = len(found.keys() | set(keys))
    data.completions = [found[key] for key in sorted(found)]


def _starts(starts: Sequence[int], lengths: Mapping[Key, int | None], rows: Sequence[TokenRow]) -> dict[int, int]:
    """Return the first step of the rollout of each step, and the step itself where the rollout has no file.

    Without its file, a rollout would be taken for the one before, whose completions have other lengths.
    """
    found = {}
    for row in rows:
        index = bisect_right(starts, row["step"]) - 1
        found[row["step"]] = starts[index] if index >= 0 else row["step"]
    for row in rows:
        if lengths.get(_key(found[row["step"]], row)) not in (None, len(row["tokens"])):
            found[row["step"]] = row["step"]
    return found


def _token_rows(data: RunData, files: dict[int, Path], share: int, token_share: int) -> list[tuple[TokenRow, Any]]:
    """Return rows of token numbers, of whole groups and evenly over the steps, with their numbers."""
    tokens, rows, kept = Budget(token_share, len(files)), Budget(share, len(files)), []
    for path in files.values():
        read = cast(list[TokenRow], _rows(path, set(TokenRow.__annotations__)))
        data.token_rows += len(read)
        some = spread(read, rows.next_share(), lambda row: row["group"], lambda row: 1)
        some = spread(some, tokens.next_share(), lambda row: row["group"], lambda row: len(row["tokens"]))
        rows.use(len(some))
        tokens.use(sum(len(row["tokens"]) for row in some))
        kept += [(row, token_numbers(row)) for row in some]
    data.shown_token_rows = len(kept)
    return kept


def _rows(path: Path, columns: set[str], only: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file, which must have some columns; only these columns, if given."""
    rows = read_rows(path, only)
    if rows and (missing := sorted(columns - rows[0].keys())):
        raise ValueError(f"{path} has no column {missing[0]!r}; it was not written by this library, so move it away.")
    return rows


def _key(start: int, row: Mapping[str, Any]) -> Key:
    return start, row["group"], row["sample"]
