"""Ratio range, entropy, KL divergence, gradient norm and reward against steps, for runs with different objectives.

All but the gradient norm are running means over nine steps. The values come from the `metrics.csv` of given runs, or
from a table of them that was written before.

    python -m experiments.figures.training_curves --output runs/figures
    python -m experiments.figures.training_curves --runs grpo=runs/grpo,gmpo=runs/gmpo --output runs/figures
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.figures.style import COLORS, DATA, panels, plot_parser, save, write_table
from experiments.options import distinct, names

CURVES = DATA / "training_curves.csv"
METRICS = ("step", "ratio/min", "ratio/max", "entropy", "kl_old", "grad_norm", "reward")
LABELS = {
    "entropy": "entropy (nats per token)",
    "kl_old": "KL to behavior (nats per token)",
    "grad_norm": "gradient norm",
    "reward": "mean reward",
}
WINDOW = 9

Run = dict[str, list[float]]


def read_run(folder: Path) -> Run:
    """Return the metrics of the training steps of a run.

    Raises:
        ValueError: the run has no such metric, or no training step yet.
    """
    path = folder / "metrics.csv"
    steps = [row for row in _rows(path, METRICS) if row["reward"]]
    if not steps:
        raise ValueError(f"{path} has no training step; pass a run that has made some.")
    return {name: [_number(row[name]) for row in steps] for name in METRICS}


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := sorted(set(columns) - set(reader.fieldnames or ())):
            raise ValueError(f"{path} has no column {', '.join(missing)}; pass a table of training steps that has it.")
        return list(reader)


def _number(text: str) -> float:
    """Return a number, or NaN for an empty cell, as in a step in which no completion is trained."""
    return float(text) if text else math.nan


def read_runs(path: Path) -> dict[str, Run]:
    """Return the runs of a table with a column `run` and the metrics.

    Raises:
        ValueError: the table lacks a column, or has no run.
    """
    runs: dict[str, Run] = {}
    for row in _rows(path, ("run", *METRICS)):
        run = runs.setdefault(row["run"], {name: [] for name in METRICS})
        for name in METRICS:
            run[name].append(_number(row[name]))
    if not runs:
        raise ValueError(f"{path} has no run; pass a table of training steps.")
    return runs


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the means of each value and those around it, up to `WINDOW`, without NaN."""
    half = WINDOW // 2
    around = [[v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)] for i in range(len(values))]
    return [statistics.fmean(some) if some else math.nan for some in around]


def _folders(text: str) -> dict[str, Path]:
    """Return the folders of runs by their name, as the type of an argument."""
    if unnamed := [one for one in names(text) if "=" not in one]:
        raise argparse.ArgumentTypeError(f"{unnamed[0]!r} has no name; pass NAME=FOLDER for each, by commas")
    pairs = [one.split("=", 1) for one in names(text)]
    distinct([name for name, _ in pairs])
    if missing := [folder for _, folder in pairs if not (Path(folder) / "metrics.csv").is_file()]:
        raise argparse.ArgumentTypeError(f"{missing[0]!r} has no metrics.csv; pass folders of runs")
    return {name: Path(folder) for name, folder in pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `training_curves.csv` and its plot."""
    parser = plot_parser(__doc__)
    parser.add_argument(
        "--runs", type=_folders, help="Folders of runs by their name, NAME=FOLDER by commas, in place of the table."
    )
    parser.add_argument("--curves", type=Path, default=CURVES, help="Table of runs.")
    options = parser.parse_args(arguments)
    try:
        folders = options.runs or {}
        runs = {name: read_run(folder) for name, folder in folders.items()} or read_runs(options.curves)
    except ValueError as error:
        parser.error(f"argument {'--runs' if options.runs else '--curves'}: {error}")
    table = [
        {"run": name} | {metric: run[metric][i] for metric in METRICS}
        for name, run in runs.items()
        for i in range(len(run["step"]))
    ]
    write_table(table, options.output, "training_curves")
    canvas, axes = panels(2, 3, 12, 6)
    extremes, *others, empty = axes
    for number, (name, run) in enumerate(runs.items()):
        look = {"color": COLORS[number % len(COLORS)], "linewidth": 1.2}
        extremes.plot(run["step"], running_mean(run["ratio/max"]), label=name, **look)
        extremes.plot(run["step"], running_mean(run["ratio/min"]), **look)
        for panel, (metric, label) in zip(others, LABELS.items(), strict=True):
            # The peaks of the gradient norm count, not its mean.
            values = run[metric] if metric == "grad_norm" else running_mean(run[metric])
            panel.plot(run["step"], values, **look)
            panel.set_ylabel(label)
    extremes.set_yscale("log")
    extremes.set_yticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
    extremes.minorticks_off()
    extremes.set_ylabel("smallest and largest ratio $r_t$")
    for panel in axes[:-1]:
        panel.set_xlabel("optimizer steps")
    empty.axis("off")
    empty.legend(*extremes.get_legend_handles_labels(), loc="center")
    save(canvas, options.output, "training_curves", options.formats.split(","))


if __name__ == "__main__":
    main()
