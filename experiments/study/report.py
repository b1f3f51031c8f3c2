"""Tables of the study in Markdown, from its results.

python -m experiments.study.report
python -m experiments.study.report --results runs/mine
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from experiments.estimate import estimate_cell
from experiments.study.design import CORE, FIDELITY_TASK, FURTHER
from experiments.study.run import FOLDER
from experiments.study.statistics import Run, edges, load, over_seeds, paired_difference, tuned_learning_rate
from experiments.study.tasks import TASKS
from experiments.tables import Row, Table, markdown, read_rows

OBJECTIVES = [variant.name for variant in (*CORE, *FURTHER)]
# Mean against mean with the same clip, clip against clip with the same mean, and exponents with the clip of GMPO; then
# each further objective against the nearest of the core, chosen before the results of its training were read.
PAIRS = (
    ("gmpo", "grpo"),
    ("gmpo", "grpo_wide_clip"),
    ("gmpo_narrow_clip", "grpo"),
    ("gmpo_no_clip", "grpo_no_clip"),
    ("grpo", "grpo_no_clip"),
    ("gmpo", "gmpo_no_clip"),
    ("quadratic", "gmpo"),
    ("hmpo", "gmpo"),
    ("pmpo", "gmpo"),
    ("pmpo", "grpo_wide_clip"),
    ("holder_po", "pmpo"),
    ("dr_grpo", "grpo"),
    ("dapo", "grpo"),
    ("ctpo", "grpo"),
    ("kpo", "gmpo_no_clip"),
    ("gmpo_sequence_clip", "gmpo"),
    ("gmpo_without_length_norm", "gmpo"),
)
MEASURES = {
    "log_ratio_90": "log ratios, 5 to 95 %",
    "log_ratio_max": "largest log ratio",
    "entropy_last": "entropy at the end",
    "kl_last": "KL to the start",
    "grad_norm_max": "largest gradient norm",
    "reward_change": "change of the reward",
    "sampled": "held-out reward",
}


def edge_table(runs: Sequence[Run]) -> Table:
    """Yield the edge of stability of each objective by updates per rollout: median over seeds, and range."""
    yield ["objective", *map(of_updates, updates_of(runs))]
    found = edges(runs)
    most = max(map(len, found.values()), default=0)
    for name in objectives_of(runs):
        cells = []
        for updates in updates_of(runs):
            values = found.get((name, updates), [])
            cells.append(_range(values, *rates_of(runs, name, updates)) + _fewer(len(values), most))
        yield [f"`{name}`", *cells]


def tuned_table(runs: Sequence[Run]) -> Table:
    """Yield the held-out reward of each objective at the learning rate that is tuned for each number of updates."""
    titles = itertools.product(map(of_updates, updates_of(runs)), ("rate", "reward"))
    yield ["objective", *map(": ".join, titles)]
    rates = {key: tuned_learning_rate(runs, *key) for key in itertools.product(objectives_of(runs), updates_of(runs))}
    found = {key: over_seeds(runs, *key, rate, "sampled") for key, rate in rates.items() if rate is not None}
    most = max((reward.seeds for reward in found.values() if reward), default=0)
    for name in objectives_of(runs):
        cells = []
        for updates in updates_of(runs):
            rate, reward = rates[name, updates], found.get((name, updates))
            few = _fewer(reward.seeds if reward else 0, most)
            cells += ["" if rate is None else f"{rate:g}", estimate_cell(reward) + few]
        yield [f"`{name}`", *cells]


def difference_table(runs: Sequence[Run], updates: int) -> Table:
    """Yield the paired differences of the measures between two objectives, and of the reader's own to all others."""
    yield ["first minus second", *MEASURES.values()]
    rows = {
        pair: [paired_difference(runs, *pair, updates, measure) for measure in MEASURES]
        for pair in pairs_of(objectives_of(runs))
    }
    seeds = {pair: max((each.seeds for each in found if each), default=0) for pair, found in rows.items()}
    for (first, second), number in seeds.items():
        if number:
            few = _fewer(number, max(seeds.values()))
            yield [f"`{first}` - `{second}`{few}", *map(estimate_cell, rows[first, second])]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: those of the study, and the reader's own objectives with all others."""
    own = itertools.product([name for name in names if name not in OBJECTIVES], names)
    return [*PAIRS, *((new, other) for new, other in own if new != other)]


def fidelity_table(rows: Sequence[Row]) -> Table:
    """Yield the fidelity of each objective: means over checkpoints, drift objectives and paths, and ranges."""
    updates = sorted({int(row["updates"]) for row in rows})
    measures = {"cosine": "cosine", "noise_to_signal": "noise to signal"}
    yield ["objective", *(f"{title}, {of_updates(number)}" for title in measures.values() for number in updates)]
    for name in objectives_of(rows):
        cells = []
        for measure in measures:
            for number in updates:
                values = list(fidelities(rows, name, number, measure).values())
                range_ = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
                cells.append(f"{sum(values) / len(values):.2f}{range_}" if values else "")
        yield [f"`{name}`", *cells]


def fidelity_difference_table(rows: Sequence[Row]) -> Table:
    """Yield the mean difference of the fidelities of two objectives after most updates, and its sign on the paths."""
    updates = max((int(row["updates"]) for row in rows), default=0)
    measures = {"cosine": "higher", "noise_to_signal": "lower"}
    titles = [f"{measure.replace('_', ' ')}, {of_updates(updates)}" for measure in measures]
    yield ["first minus second", *itertools.chain.from_iterable(zip(titles, measures.values(), strict=True))]
    for first, second in pairs_of(objectives_of(rows)):
        cells = []
        for measure, better in measures.items():
            one, other = (fidelities(rows, name, updates, measure) for name in (first, second))
            differences = [one[path] - other[path] for path in one if path in other]
            wins = sum(value > 0 if better == "higher" else value < 0 for value in differences)
            if differences:
                cells += [f"{sum(differences) / len(differences):.2f}", f"{wins} of {len(differences)} paths"]
        if cells:
            yield [f"`{first}` - `{second}`", *cells]


def fidelities(rows: Sequence[Row], objective: str, updates: int, measure: str) -> dict[tuple[str, ...], float]:
    """Return a measure of fidelity by path, if there was a signal; of a repeated path, the last one."""
    own = [row for row in rows if row["objective"] == objective and int(row["updates"]) == updates]
    names = ("start", "checkpoint", "drift", "path")
    return {tuple(row.get(name, "") for name in names): float(row[measure]) for row in own if row[measure]}


def objectives_of(results: Sequence[Run] | Sequence[dict[str, str]]) -> list[str]:
    """Return the names of the objectives that there are results of, in the order of the design."""
    names = {one.objective if isinstance(one, Run) else one["objective"] for one in results}
    return [*(name for name in OBJECTIVES if name in names), *sorted(names - set(OBJECTIVES))]


def updates_of(runs: Sequence[Run]) -> list[int]:
    """Return the numbers of updates per rollout that were run."""
    return sorted({run.updates for run in runs})


def of_updates(updates: int) -> str:
    """Return a number of updates per rollout in words."""
    return "1 update" if updates == 1 else f"{updates} updates"


def rates_of(runs: Sequence[Run], objective: str, updates: int) -> tuple[float, float]:
    """Return the lowest learning rate that an objective was run at, and the highest of its ladders."""
    own = [run for run in runs if (run.objective, run.updates) == (objective, updates)]
    lowest = min((run.learning_rate for run in own), default=0.0)
    return lowest, max((run.highest_rate for run in own), default=0.0)


def _fewer(seeds: int, most: int) -> str:
    """Return the number of seeds of a cell that has fewer than others of its table, and else nothing."""
    return f", {seeds} {'seed' if seeds == 1 else 'seeds'}" if 0 < seeds < most else ""


def _range(values: Sequence[float], lowest: float, highest: float) -> str:
    """Return the median of sorted edges, with their range if they differ and the sign of those beyond the grid."""
    if not values:
        return ""

    def shown(value: float) -> str:
        return f"< {lowest:g}" if value == 0 else f"≥ {value:g}" if value == highest else f"{value:g}"

    low, median, high = (shown(value) for value in (values[0], values[(len(values) - 1) // 2], values[-1]))
    return median if low == high else f"{median} ({low} to {high})"


def tables(results: Path, task: str = "addition") -> dict[str, str]:
    """Return the tables of the study in Markdown, by name; those without results are left out."""
    runs = load(results / "runs.csv", task)
    fidelity = read_rows(results / "fidelity.csv") if task == FIDELITY_TASK else []
    made = {
        "edges": edge_table(runs),
        "tuned": tuned_table(runs),
        **{f"differences at {of_updates(updates)}": difference_table(runs, updates) for updates in updates_of(runs)},
        "fidelity": fidelity_table(fidelity),
        "differences of fidelity": fidelity_difference_table(fidelity),
    }
    found = {name: markdown(table) for name, table in made.items()}
    return {name: text for name, text in found.items() if text.count("\n") > 1}


def nothing(results: Path, task: str) -> str:
    """Return what is wrong with a folder that has nothing to show."""
    remedy = "pass the `--output` of `experiments.study.run`, and a `--task` that has a whole ladder there"
    return f"`--results` is {str(results)!r}, which has no results of the task {task!r}; {remedy}."


def results_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the folder of the results and of a task.

    Args:
        description: Docstring of the script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help=f"Folder of the results; {FOLDER} without it.")
    parser.add_argument("--task", choices=sorted(TASKS), default="addition", help="Task of the runs.")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = results_parser(__doc__)
    options = parser.parse_args(arguments)
    found = tables(options.results, options.task)
    if not found:
        parser.error(nothing(options.results, options.task))
    for name, text in found.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
