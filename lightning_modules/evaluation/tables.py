"""Results of evaluations as JSON and Markdown, and the paired differences of two evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.atomic import replacing
from lightning_modules.evaluation.results import BenchmarkResult
from lightning_modules.evaluation.statistics import Estimate, paired_difference

_FILE = "results.json"


def write_results(results: Sequence[BenchmarkResult], folder: Path) -> None:
    """Write `results.json` and the table `results.md` to a folder, each atomically."""
    with replacing(folder / _FILE) as path:
        path.write_text(json.dumps([one.state_dict() for one in results], indent=1) + "\n", encoding="utf-8")
    with replacing(folder / "results.md") as path:
        path.write_text(results_table(results) + "\n", encoding="utf-8")


def read_results(folder: str | Path) -> list[BenchmarkResult]:
    """Return the results that an evaluation has written to a folder.

    Raises:
        FileNotFoundError: the folder has no results.
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {_FILE}; pass the output folder of a finished `aggregate-po evaluate --model`."
        )
    return [BenchmarkResult.from_state_dict(state) for state in json.loads(path.read_text(encoding="utf-8"))]


def results_table(results: Sequence[BenchmarkResult]) -> str:
    """Return a Markdown table with a row per benchmark; accuracies in percent, with 95 % intervals."""
    accuracies = ["greedy", "avg@k", "avg@k over samples", "pass@k", "maj@k"]
    titles = ["benchmark", "problems", "k", *accuracies, "truncated", "tokens", "failed"]
    rows = []
    for one in results:
        names = [name.replace("@k", f"@{one.samples}") for name in accuracies]
        estimates = [_percent(one.metrics[name]) if name in one.metrics else "" for name in names]
        failed = ", ".join(f"{count} {cause}" for cause, count in sorted(one.failed.items())) or "0"
        lengths = f"{one.truncated['sampled']:.1%}", f"{one.mean_length['sampled']:.0f}"
        rows.append([one.name, str(one.problems), str(one.samples), *estimates, *lengths, failed])
    return _table(titles, rows, left=1)


def comparison_table(first: str | Path, second: str | Path) -> str:
    """Return a Markdown table of the paired differences `second - first` on the benchmarks of two evaluations.

    Args:
        first: output folder of an evaluation.
        second: output folder of another one.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: the evaluations share no problem.
    """
    ours, theirs = ({one.name: one for one in read_results(folder)} for folder in (first, second))
    rows, notes = [], []
    for name in [name for name in ours if name in theirs]:
        for kind in [kind for kind in ours[name].scores if kind in theirs[name].scores]:
            before, after = ours[name].scores[kind], theirs[name].scores[kind]
            shared = [key for key in before if key in after]
            if len(shared) < max(len(before), len(after)):
                notes.append(f"{name}: {len({*before} ^ {*after})} problems are in one evaluation only, and left out.")
            if shared:
                pair = [before[key] for key in shared], [after[key] for key in shared]
                means = [_mean(scores) for scores in pair]
                rows.append([name, kind, str(len(shared)), *means, _percent(paired_difference(*pair), signed=True)])
    if not rows:
        raise ValueError(
            f"{str(first)!r} has {', '.join(ours)}, and {str(second)!r} has {', '.join(theirs)}, which share no "
            "problem; pass two evaluations on the same benchmark."
        )
    table = _table(["benchmark", "completions", "problems", "A", "B", "B - A"], rows, left=2)
    return "\n".join([table, *(["", *dict.fromkeys(notes)] if notes else [])])


def _percent(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]" if signed else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _mean(scores: Sequence[Sequence[float]]) -> str:
    return f"{100 * sum(sum(problem) / len(problem) for problem in scores) / len(scores):.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table whose columns after the first ones are aligned on the right."""
    widths = [max(3, *map(len, column)) for column in zip(titles, *rows, strict=True)]
    rule = ["-" * width if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    lines = []
    for row in [titles, rule, *rows]:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
