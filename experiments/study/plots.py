"""Plots of the study, from its results: all runs, edges of stability, learning curves, and fidelity of gradients.

python -m experiments.study.plots
python -m experiments.study.plots --results runs/mine --output runs/mine
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.figures.style import Value, legend_below, look, panels, plot_parser, save, write_table
from experiments.study.design import CORE
from experiments.study.report import OBJECTIVES, fidelities, nothing, objectives_of, of_updates, rates_of, updates_of
from experiments.study.run import FOLDER
from experiments.study.statistics import Run, edges, load, tuned_learning_rate
from experiments.study.tasks import TASKS
from experiments.tables import Row, read_rows

_Table = list[dict[str, Value]]
_OTHERS = "#b0b0b0"
CURVES = ("grpo", "grpo_no_clip", "gmpo", "gmpo_no_clip")
CURVE_LABELS = {
    "log_ratio_min": "smallest log ratio (nats)",
    "log_ratio_max": "largest log ratio (nats)",
    "entropy": "entropy (nats per token)",
    "kl": "KL to the start (nats per token)",
    "reward": "training reward",
    "grad_norm_max": "largest gradient norm",
}


def plot_runs(runs: Mapping[str, Sequence[Run]], folder: Path, formats: Sequence[str]) -> None:
    """Plot the held-out reward of every run against its learning rate, by task and updates per rollout.

    Runs that collapsed are hollow; those that gradients ended that were not finite have none, and are at 0.
    """
    settings = [(task, updates) for task, own in runs.items() for updates in updates_of(own)]
    columns = min(3, len(settings))
    canvas, axes = panels(
        -(-len(settings) // columns), columns, 3.5 * columns, 0.7 + 2.6 * -(-len(settings) // columns)
    )
    rows: _Table = []
    for panel, (task, updates) in zip(axes, settings, strict=False):
        own = [run for run in runs[task] if run.updates == updates]
        rows += _plotted_runs(panel, own)
        panel.set_title(f"{task}, {of_updates(updates)}")
        panel.set_xlabel("learning rate")
        panel.set_ylabel("held-out reward")
    for panel in axes[len(settings) :]:
        panel.set_axis_off()
    _legend_of_runs(axes[0])
    legend_below(canvas, axes[0], columns=6)
    save(canvas, folder, "study_runs", formats)
    write_table(rows, folder, "study_runs")


def _plotted_runs(panel: Axes, runs: Sequence[Run]) -> _Table:
    names = objectives_of(runs)
    middle = (len(names) - 1) / 2  # objectives stand side by side, from the left in the order of the tables
    for color, collapsed in itertools.product(_colors_of_runs().values(), (True, False)):
        own = [run for run in runs if (_color_of_run(run.objective), run.collapsed) == (color, collapsed)]
        across = [run.learning_rate * 1.015 ** (names.index(run.objective) - middle) for run in own]
        up = [run.measures.get("sampled", 0.0) for run in own]
        fill = "none" if collapsed else color
        # As an image, since markers of thousands of runs make a large file.
        panel.scatter(across, up, s=8, linewidths=0.7, edgecolors=color, facecolors=fill, rasterized=True)
    panel.set_xscale("log")
    rates = sorted({run.learning_rate for run in runs})
    panel.set_xticks(rates, [f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-") for rate in rates], fontsize=7)
    panel.minorticks_off()
    return [
        {
            "task": run.task,
            "objective": run.objective,
            "updates": run.updates,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "collapsed": int(run.collapsed),
            "held_out_reward": run.measures.get("sampled", float("nan")),
        }
        for run in runs
    ]


def _colors_of_runs() -> dict[str, str]:
    """Return the colors by objective; those of gray are plotted first."""
    return {"others": _OTHERS, **{name: look(number)["color"] for number, name in enumerate(CURVES)}}


def _color_of_run(objective: str) -> str:
    return _colors_of_runs().get(objective, _OTHERS)


def _legend_of_runs(panel: Axes) -> None:
    for name, color in _colors_of_runs().items():
        panel.scatter([], [], s=16, color=color, label=name)
    panel.scatter([], [], s=16, facecolors="none", edgecolors="black", label="collapsed")


def plot_edges(runs: Mapping[str, Sequence[Run]], folder: Path, formats: Sequence[str]) -> None:
    """Plot the edge of each objective against the updates per rollout, by task: median and range over seeds.

    Like the fidelity, of the core objectives and the reader's own; the data have all, with the range over seeds.
    """
    canvas, axes = panels(1, len(runs), 4 + 4 * len(runs), 4.5)
    rows: _Table = []
    for panel, (task, own) in zip(axes, runs.items(), strict=True):
        rows += [{"task": task, **row} for row in _plotted_edges(panel, own)]
        panel.set_title(task)
    legend_below(canvas, axes[0], columns=5)
    save(canvas, folder, "study_edges", formats)
    write_table(rows, folder, "study_edges")


def _plotted_edges(panel: Axes, runs: Sequence[Run]) -> _Table:
    shown = [name for name in objectives_of(runs) if _is_shown(name)]
    middle = (len(shown) - 1) / 2  # markers of equal edges stand side by side
    rows: _Table = []
    for name in objectives_of(runs):
        found = {updates: own for (objective, updates), own in sorted(edges(runs).items()) if objective == name}
        if found and name in shown:
            number = shown.index(name)
            across = [updates * 1.02 ** (number - middle) for updates in found]
            _edge_line(panel, across, [_low_median_high(runs, name, *own) for own in found.items()], name, number)
        rows += [
            {"objective": name, "updates": updates, "low": own[0], "median": own[(len(own) - 1) // 2], "high": own[-1]}
            for updates, own in found.items()
        ]
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    counts = updates_of(runs)
    panel.set_xticks(counts, [str(updates) for updates in counts])
    if len(counts) == 1:  # lines are points, and limits from their small distances would leave the tick at an edge
        panel.set_xlim(counts[0] / 2, counts[0] * 2)
    panel.set_xlabel("updates per rollout")
    panel.set_ylabel("largest stable learning rate")
    return rows


def _low_median_high(runs: Sequence[Run], name: str, updates: int, values: Sequence[float]) -> tuple[float, ...]:
    """Return the range of sorted edges and their median; one below the ladder is at half of its lowest rate."""
    below = rates_of(runs, name, updates)[0] / 2
    return tuple(values[place] or below for place in (0, (len(values) - 1) // 2, -1))


def _edge_line(
    panel: Axes, across: Sequence[float], found: Sequence[tuple[float, ...]], name: str, number: int
) -> None:
    low, medians, high = zip(*found, strict=True)
    ranges = np.subtract([medians, high], [low, medians])
    panel.errorbar(across, medians, yerr=ranges, label=name, elinewidth=0.7, **look(number))


def plot_fidelity(fidelity: Sequence[Row], folder: Path, formats: Sequence[str]) -> None:
    """Plot cosine and noise of stale gradients against the updates since the rollout was sampled, as means over paths.

    More than the core objectives and the reader's own could not be told apart; the data have all.
    """
    canvas, (left, right) = panels(1, 2, 10, 4.5)
    updates = sorted({int(row["updates"]) for row in fidelity})
    rows: _Table = []
    for number, name in enumerate(objectives_of(fidelity)):
        for panel, measure in ((left, "cosine"), (right, "noise_to_signal")):
            means = []
            for count in updates:
                values = fidelities(fidelity, name, count, measure).values()
                means.append(sum(values) / len(values) if values else float("nan"))
                rows.append({"objective": name, "updates": count, "measure": measure, "mean": means[-1]})
            if _is_shown(name):
                _line(panel, updates, means, name, number)
    for panel, label in ((left, "cosine with the on-policy gradient"), (right, "noise to signal of one rollout")):
        panel.set_xscale("log", base=2)
        panel.set_xticks(updates, [str(count) for count in updates])
        panel.set_xlabel("updates since the rollout was sampled")
        panel.set_ylabel(label)
    legend_below(canvas, left, columns=5)
    save(canvas, folder, "study_fidelity", formats)
    write_table(rows, folder, "study_fidelity")


def plot_curves(runs: Sequence[Run], rollouts: Sequence[Row], folder: Path, formats: Sequence[str]) -> None:
    """Plot ratio range, entropy, divergence and reward over the rollouts, as means and ranges over seeds.

    Each objective has the most updates per rollout of which there is a whole ladder, and the learning rate that is
    tuned for them; one without such a rate is not shown.
    """
    canvas, axes = panels(2, 3, 11, 6.5)
    rows: _Table = []
    most = max(updates for _, updates in edges(runs))
    shown = [name for name in objectives_of(runs) if name in CURVES or name not in OBJECTIVES]
    tuned = {name: tuned_learning_rate(runs, name, most) for name in shown}
    for number, (name, rate) in enumerate((name, rate) for name, rate in tuned.items() if rate is not None):
        setting = name, str(most), rate
        own = [row for row in rollouts if (row["objective"], row["updates"], float(row["learning_rate"])) == setting]
        for panel, measure in zip(axes, CURVE_LABELS, strict=True):
            points = [(count, values) for count, values in _by_rollout(own, measure) if values]
            means = [sum(values) / len(values) for _, values in points]
            steps = [count for count, _ in points]
            color = look(number)["color"]
            panel.plot(steps, means, label=f"{name}, {rate:g}", color=color)
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            if low != high:
                panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            about = {"objective": name, "learning_rate": rate, "measure": measure}
            rows += [
                {**about, "rollout": count, "mean": mean, "low": lowest, "high": highest}
                for count, mean, lowest, highest in zip(steps, means, low, high, strict=True)
            ]
    for panel, label in zip(axes, CURVE_LABELS.values(), strict=True):
        panel.set_xlabel("rollout")
        panel.set_ylabel(label)
    legend_below(canvas, axes[0], columns=4)
    save(canvas, folder, "study_curves", formats)
    write_table(rows, folder, "study_curves")


def _is_shown(objective: str) -> bool:
    return objective in {variant.name for variant in CORE} or objective not in OBJECTIVES


def _by_rollout(rows: Sequence[Row], measure: str) -> Iterator[tuple[int, list[float]]]:
    """Yield each rollout with the values of its seeds; of a run that was made twice, the last one counts."""
    last = {(int(row["rollout"]), row["seed"], row.get("start")): row[measure] for row in rows}
    for count in sorted({rollout for rollout, *_ in last}):
        yield count, [float(value) for (rollout, *_), value in last.items() if rollout == count and value]


def _line(panel: Axes, across: Sequence[float], values: Sequence[float], label: str, number: int) -> None:
    style = look(number)
    panel.plot(across, values, label=label, color=style["color"], marker=style["marker"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the plots of which there are results."""
    parser = plot_parser(__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="Folder of the results.")
    task_help = "Task of the learning curves; runs and edges are those of all tasks."
    parser.add_argument("--task", choices=sorted(TASKS), default="addition", help=task_help)
    options = parser.parse_args(arguments)
    target = options.output, options.formats.split(",")
    by_task = {task: load(options.results / "runs.csv", task) for task in TASKS}
    runs = load(options.results / "runs.csv", options.task)
    rollouts = [row for row in read_rows(options.results / "rollouts.csv") if row["task"] == options.task]
    fidelity = read_rows(options.results / "fidelity.csv")
    if not (edges(runs) or fidelity):
        parser.error(nothing(options.results, options.task))
    if edges(runs):
        plot_runs({task: own for task, own in by_task.items() if own}, *target)
        plot_edges({task: own for task, own in by_task.items() if edges(own)}, *target)
        plot_curves(runs, rollouts, *target)
    if fidelity:
        plot_fidelity(fidelity, *target)


if __name__ == "__main__":
    main()
