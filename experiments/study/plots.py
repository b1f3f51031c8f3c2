"""Plots of the study, from its results: edges of stability, learning curves, and fidelity of gradients.

python -m experiments.study.plots
python -m experiments.study.plots --results runs/mine --output runs/mine
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from experiments.figures.style import Value, legend_below, look, panels, plot_parser, save, write_table
from experiments.study.design import CORE
from experiments.study.report import OBJECTIVES, fidelities, nothing, objectives_of, updates_of
from experiments.study.run import FOLDER
from experiments.study.statistics import Run, edges, load, tuned_learning_rate
from experiments.study.tasks import TASKS
from experiments.tables import Row, read_rows

_Table = list[dict[str, Value]]
CURVES = ("grpo", "grpo_no_clip", "gmpo", "gmpo_no_clip")
CURVE_LABELS = {
    "log_ratio_min": "smallest log ratio (nats)",
    "log_ratio_max": "largest log ratio (nats)",
    "entropy": "entropy (nats per token)",
    "kl": "KL to the start (nats per token)",
    "reward": "training reward",
    "grad_norm_max": "largest gradient norm",
}


def plot_edges(runs: Mapping[str, Sequence[Run]], folder: Path, formats: Sequence[str]) -> None:
    """Plot the median edge of each objective against the updates per rollout, by task.

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
    lowest = min(run.learning_rate for run in runs)
    shown = [name for name in objectives_of(runs) if _is_shown(name)]
    middle = (len(shown) - 1) / 2  # markers of equal edges stand side by side
    rows: _Table = []
    for name in objectives_of(runs):
        found = {updates: own for (objective, updates), own in sorted(edges(runs).items()) if objective == name}
        if found and name in shown:
            number = shown.index(name)
            medians = [own[(len(own) - 1) // 2] or lowest / 2 for own in found.values()]
            _line(panel, [updates * 1.02 ** (number - middle) for updates in found], medians, name, number)
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
    panel.set_ylabel("largest stable learning rate (median over seeds)")
    return rows


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

    Each objective has the most updates per rollout that were run, and the learning rate that is tuned for them.
    """
    canvas, axes = panels(2, 3, 11, 6.5)
    rows: _Table = []
    most = updates_of(runs)[-1]
    shown = [name for name in objectives_of(runs) if name in CURVES or name not in OBJECTIVES]
    for number, name in enumerate(shown):
        rate = tuned_learning_rate(runs, name, most)
        setting = name, str(most), rate
        own = [row for row in rollouts if (row["objective"], row["updates"], float(row["learning_rate"])) == setting]
        for panel, measure in zip(axes, CURVE_LABELS, strict=True):
            points = [(count, values) for count, values in _by_rollout(own, measure) if values]
            means = [sum(values) / len(values) for _, values in points]
            steps = [count for count, _ in points]
            color = look(number)["color"]
            panel.plot(steps, means, label=f"{name}, {rate or 0:g}", color=color)
            if max((len(values) for _, values in points), default=0) > 1:
                low, high = [min(values) for _, values in points], [max(values) for _, values in points]
                panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            rows += [
                {"objective": name, "learning_rate": rate or 0.0, "measure": measure, "rollout": count, "mean": mean}
                for count, mean in zip(steps, means, strict=True)
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
    parser.add_argument("--task", default="addition", help="Task of the learning curves; edges are those of all tasks.")
    options = parser.parse_args(arguments)
    target = options.output, options.formats.split(",")
    by_task = {task: load(options.results / "runs.csv", task) for task in TASKS}
    runs = load(options.results / "runs.csv", options.task)
    rollouts = [row for row in read_rows(options.results / "rollouts.csv") if row["task"] == options.task]
    fidelity = read_rows(options.results / "fidelity.csv")
    if not (edges(runs) or fidelity):
        parser.error(nothing(options.results, options.task))
    if edges(runs):
        plot_edges({task: own for task, own in by_task.items() if edges(own)}, *target)
        plot_curves(runs, rollouts, *target)
    if fidelity:
        plot_fidelity(fidelity, *target)


if __name__ == "__main__":
    main()
