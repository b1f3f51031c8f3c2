"""Plot of the metrics of a run."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Columns = dict[str, list[float | None]]


# Metrics of a held-out set, which may have a name; `val/rewards/NAME_...` are single rewards.
_HELD_OUT = re.compile(r"val/(?:(?!rewards/)(?P<set>[^/]+)/)?(?P<measure>pass@1|reward)_(?P<evaluation>\w+)")


def read_metrics(path: str | Path) -> Columns:
    """Return the columns of a metrics file by name, with None for empty cells."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else []
    return {name: [float(row[name]) if row[name] else None for row in rows] for name in names}


def plot_run(metrics: str | Path, path: str | Path) -> None:
    """Plot reward, held-out accuracy, length, entropy, ratio range and clipped fraction over optimizer steps.

    Args:
        metrics: `metrics.csv` of a run.
        path: image file to write; its suffix determines the format.
    """
    columns = read_metrics(metrics)
    figure, panels = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    reward, accuracy, length, entropy, ratio, clipped = panels.flat
    _curve(reward, columns, "reward", "mean reward of training completions", smooth=True)
    _held_out(accuracy, columns)
    _curve(length, columns, "completions/mean_length", "completion length (tokens)", smooth=True)
    _curve(entropy, columns, "entropy", "entropy (nats per token)", smooth=True)
    _band(ratio, columns, "ratio/min", "ratio/max")
    ratio.axhline(1, color="grey", linewidth=0.8)
    ratio.set_yscale("log")
    ratio.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ratio.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratio.yaxis.set_minor_formatter(NullFormatter())
    ratio.set_ylabel(r"token ratio $r_t$, smallest to largest")
    _curve(clipped, columns, "clip_ratio/region_mean", "fraction of tokens clipped", smooth=True)
    for panel in panels.flat:
        panel.set_xlabel("optimizer steps")
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _series(columns: Columns, name: str) -> tuple[list[float], list[float]]:
    pairs = [
        (step, value)
        for step, value in zip(columns.get("step", []), columns.get(name, []), strict=False)
        if step is not None and value is not None
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _curve(panel: Axes, columns: Columns, name: str, label: str, smooth: bool) -> None:
    steps, values = _series(columns, name)
    panel.plot(steps, values, color="C0", alpha=0.35 if smooth else 1.0, linewidth=1)
    if smooth and values:
        panel.plot(steps, _running_mean(values), color="C0", linewidth=2)
    panel.set_ylabel(label)


def _held_out(panel: Axes, columns: Columns) -> None:
    """Plot the pass rates of the held-out sets, or their rewards where there are no pass rates."""
    has_rates = any("pass@1" in name for name in columns)
    found = {name: match for name in columns if (match := _HELD_OUT.fullmatch(name))}
    measure = "reward" if found and not has_rates else "pass@1"
    for evaluation in dict.fromkeys(match["evaluation"] for match in found.values()):
        for name, match in found.items():
            if (match["measure"], match["evaluation"]) == (measure, evaluation):
                _points(panel, columns, name, " ".join(filter(None, (match["set"], evaluation))))
    panel.set_ylabel(f"held-out {measure}")
    if measure == "pass@1":
        panel.set_ylim(0, 1)
    if panel.lines:
        panel.legend()


def _points(panel: Axes, columns: Columns, name: str, label: str) -> None:
    steps, values = _series(columns, name)
    if values:
        panel.plot(steps, values, marker="o", markersize=4, label=label)


def _band(panel: Axes, columns: Columns, low: str, high: str) -> None:
    (steps, lows), (_, highs) = _series(columns, low), _series(columns, high)
    panel.fill_between(steps, lows, highs, alpha=0.4, color="C0", linewidth=0)


def _running_mean(values: list[float], window: int = 15) -> list[float]:
    means = []
    for end in range(1, len(values) + 1):
        recent = values[max(end - window, 0) : end]
        means.append(sum(recent) / len(recent))
    return means
