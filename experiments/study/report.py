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
from experiments.study.design import CORE, FURTHER
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
    yield ["objective", *map(_of_updates, updates_of(runs))]
    found, rates = edges(runs), [run.learning_rate for run in runs]
    for name in objectives_of(runs):
        own = [found.get((name, updates), []) for updates in updates_of(runs)]
        yield [f"`{name}`", *(_range(values, min(rates), max(rates)) for values in own)]


def tuned_table(runs: Sequence[Run]) -> Table:
    """Yield the held-out reward of each objective at the learning rate that is tuned for each number of updates."""
    titles = itertools.product(map(_of_updates, updates_of(runs)), ("rate", "reward"))
    yield ["objective", *map(": ".join, titles)]
    for name in objectives_of(runs):
        cells = []
        for updates in updates_of(runs):
            rate = tuned_learning_rate(runs, name, updates)
            found = None if rate is None else over_seeds(runs, name, updates, rate, "sampled")
            cells += ["" if rate is None else f"{rate:g}", estimate_cell(found)]
        yield [f"`{name}`", *cells]


def difference_table(runs: Sequence[Run], updates: int) -> Table:
    """Yield the paired differences of the measures between two objectives, and of the reader's own to all others."""
    yield ["first minus second", *MEASURES.values()]
    for first, second in _pairs(objectives_of(runs)):
        found = [paired_difference(runs, first, second, updates, measure) for measure in MEASURES]
        if any(found):
            yield [f"`{first}` - `{second}`", *map(estimate_cell, found)]


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: those of the study, and the reader's own objectives with all others."""
    own = itertools.product([name for name in names if name not in OBJECTIVES], names)
    return [*PAIRS, *((new, other) for new, other in own if new != other)]


def fidelity_table(rows: Sequence[Row]) -> Table:
    """Yield the fidelity of each objective: means over checkpoints, drift objectives and paths, and ranges."""
    updates = sorted({int(row["updates"]) for row in rows})
    measures = {"cosine": "cosine", "noise_to_signal": "noise to signal"}
    yield ["objective", *(f"{title}, {_of_updates(number)}" for title in measures.values() for number in updates)]
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
    titles = [f"{measure.replace('_', ' ')}, {_of_updates(updates)}" for measure in measures]
    yield ["first minus second", *itertools.chain.from_iterable(zip(titles, measures.values(), strict=True))]
    for first, second in _pairs(objectives_of(rows)):
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


def _of_updates(updates: int) -> str:
    return "1 update" if updates == 1 else f"{updates} updates"


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
    runs, fidelity = load(results / "runs.csv", task), read_rows(results / "fidelity.csv")
    made = {
        "edges": edge_table(runs),
        "tuned": tuned_table(runs),
        **{f"differences at {_of_updates(updates)}": difference_table(runs, updates) for updates in updates_of(runs)},
        "fidelity": fidelity_table(fidelity),
        "differences of fidelity": fidelity_difference_table(fidelity),
    }
    found = {name: markdown(table) for name, table in made.items()}
    return {name: text for name, text in found.items() if text.count("\n") > 1}


def nothing(results: Path, task: str) -> str:
    """Return what is wrong with a folder that has nothing to show."""
    remedy = f"pass the `--output` of `experiments.study.run`, and a task of {', '.join(sorted(TASKS))}"
    return f"`--results` is {str(results)!r}, which has no results of the task {task!r}; {remedy}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="Folder of the results.")
    parser.add_argument("--task", default="addition", help="Task of the runs.")
    options = parser.parse_args(arguments)
    found = tables(options.results, options.task)
    if not found:
        parser.error(nothing(options.results, options.task))
    for name, text in found.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
