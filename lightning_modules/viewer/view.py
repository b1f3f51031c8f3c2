"""The report of runs: their configurations, metrics and completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_modules.validation import require_at_least
from lightning_modules.viewer.reading_aids import described_metrics
from lightning_modules.viewer.report import Report
from lightning_modules.viewer.run_data import RunData, read_run
from lightning_modules.viewer.run_facts import differing_options
from lightning_modules.viewer.selection import Budget
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
    completions, tokens = Budget(max_completions, len(folders)), Budget(max_tokens, len(folders))
    names = _names(folders)
    data = [read_run(folder, name, completions, tokens) for folder, name in zip(folders, names, strict=True)]
    others = differing_options([one.config for one in data])
    return Report(
        title=", ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        runs=[replace(one.run, facts={**one.run.facts, **more}) for one, more in zip(data, others, strict=True)],
        metrics=described_metrics(name for one in data for name in one.run.metrics),
        completions=[replace(each, run=number) for number, one in enumerate(data) for each in one.completions],
        quantities=QUANTITIES,
        notes=_left_out(data),
    )


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


def _left_out(data: Sequence[RunData]) -> list[str]:
    """Return sentences that count what is not shown."""
    notes = []
    shown, kept = sum(len(one.completions) for one in data), sum(one.kept for one in data)
    if shown < kept:
        notes.append(
            f"{shown:,} of {kept:,} completions are shown, in whole groups and evenly over the steps; "
            "`--max_completions` sets the limit."
        )
    rows = sum(one.token_rows for one in data)
    if (shown_rows := sum(one.shown_token_rows for one in data)) < rows:
        notes.append(
            f"Token numbers of {shown_rows:,} of {rows:,} completions and steps are shown; `--max_tokens` and "
            "`--max_completions` set the limits."
        )
    return notes
