"""The report of runs: their configurations, metrics and completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_modules.callbacks.completion_rows import completion_files
from lightning_modules.parquet_files import require_pyarrow
from lightning_modules.token_rows import token_files
from lightning_modules.validation import require_at_least
from lightning_modules.viewer.kept_rows import KeptRows, kept_rows, shown_completions
from lightning_modules.viewer.reading_aids import described_metrics
from lightning_modules.viewer.report import Completion, Report
from lightning_modules.viewer.run_data import read_run
from lightning_modules.viewer.run_facts import differing_options
from lightning_modules.viewer.selection import shown_groups
from lightning_modules.viewer.token_numbers import QUANTITIES


def run_report(runs: Sequence[str | Path], max_completions: int = 5000, max_tokens: int = 1_000_000) -> Report:
    """Return the report of runs, from their run folders.

    Args:
        runs: Run folders. Runs whose configurations differ in the seed only become one line with a band.
        max_completions: Number of completions that the page shows at most, in whole groups and evenly over the steps of
            all runs; those with token numbers come first, and 0 shows none.
        max_tokens: Number of tokens whose numbers the page shows at most, in each step that they were kept in.

    Raises:
        FileNotFoundError: a folder holds no run.
        ImportError: a run has completions, and pyarrow is not installed.
        ValueError: a file is damaged, a folder is passed twice, or a number is negative.
    """
    require_at_least(0, max_completions=max_completions, max_tokens=max_tokens)
    folders = [Path(run) for run in runs]
    _require_distinct(folders)
    names = _names(folders)
    data = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    others = differing_options([config for _, config in data])
    kept = [_kept(folder) for folder in folders] if max_completions else []
    completions = _shown(kept, max_completions, max_tokens)
    return Report(
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        runs=[replace(run, facts={**run.facts, **more}) for (run, _), more in zip(data, others, strict=True)],
        metrics=described_metrics(name for run, _ in data for name in run.metrics),
        completions=completions,
        quantities=QUANTITIES,
        notes=_left_out(kept, completions),
    )


def _kept(folder: Path) -> KeptRows:
    if completion_files(folder) or token_files(folder):
        require_pyarrow(f"{folder}: showing its completions", "show the metrics alone with `--max_completions 0`")
    return kept_rows(folder)


def _shown(kept: Sequence[KeptRows], max_completions: int, max_tokens: int) -> list[Completion]:
    groups = shown_groups(kept, max_completions, max_tokens)
    return [
        replace(completion, run=number)
        for number, (rows, shown) in enumerate(zip(kept, groups, strict=True))
        for completion in shown_completions(rows, shown.completions, shown.token_rows)
    ]


def _require_distinct(folders: Sequence[Path]) -> None:
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ValueError(f"`runs` has {str(folder)!r} twice; pass each run once.")


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _left_out(kept: Sequence[KeptRows], completions: Sequence[Completion]) -> list[str]:
    """Return sentences that count what is not shown."""
    notes = []
    shown, count = len(completions), sum(len(one.keys) for one in kept)
    if shown < count:
        notes.append(
            f"{shown:,} of {count:,} completions are shown, in whole groups and evenly over the steps; "
            "`--max_completions` sets the limit."
        )
    rows = sum(len(one.token_rows) for one in kept)
    if (shown_rows := sum(len(one.tokens) for one in completions)) < rows:
        notes.append(
            f"Token numbers of {shown_rows:,} of {rows:,} completions and steps are shown; `--max_tokens` and "
            "`--max_completions` set the limits."
        )
    return notes
