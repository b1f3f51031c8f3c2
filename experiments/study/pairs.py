"""Single learning rates behind the tables of the study: signs of the differences in pairs of runs, and survivors.

python -m experiments.study.pairs
python -m experiments.study.pairs --task spell_backward --results runs/mine
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.study.report import MEASURES, nothing, objectives_of, of_updates, pairs_of, results_parser, updates_of
from experiments.study.statistics import Run, load, paired_differences
from experiments.tables import Table, markdown


def pair_table(runs: Sequence[Run], updates: int) -> Table:
    """Yield in how many pairs the first of two objectives has the higher measure, and the mean difference.

    The pairs are those of `report.difference_table`: at each learning rate, and at all of them in the last row.
    """
    yield ["first minus second", "learning rate", *MEASURES.values()]
    for first, second in pairs_of(objectives_of(runs)):
        found = [paired_differences(runs, first, second, updates, measure) for measure in MEASURES]
        rates = sorted({rate for differences in found for values in differences.values() for rate in values})
        for rate in rates:
            cells = [_cell(values[rate] for values in each.values() if rate in values) for each in found]
            yield [f"`{first}` - `{second}`", f"{rate:g}", *cells]
        if rates:
            cells = [_cell(value for values in each.values() for value in values.values()) for each in found]
            yield [f"`{first}` - `{second}`", "all", *cells]


def survivor_table(runs: Sequence[Run], updates: int) -> Table:
    """Yield how many runs of each objective did not collapse, by learning rate."""
    own = [run for run in runs if run.updates == updates]
    rates = sorted({run.learning_rate for run in own})
    yield ["objective", *(f"{rate:g}" for rate in rates)]
    for name in objectives_of(own):
        collapsed = [[run.collapsed for run in own if (run.objective, run.learning_rate) == (name, r)] for r in rates]
        yield [f"`{name}`", *(f"{len(each) - sum(each)} of {len(each)}" if each else "" for each in collapsed)]


def _cell(differences: Iterable[float]) -> str:
    values = list(differences)
    if not values:
        return ""
    return f"{sum(values) / len(values):.3g}, {sum(value > 0 for value in values)} of {len(values)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = results_parser(__doc__)
    options = parser.parse_args(arguments)
    runs = load(options.results / "runs.csv", options.task)
    if not runs:
        parser.error(nothing(options.results, options.task))
    for updates in updates_of(runs):
        print(f"runs that did not collapse, {of_updates(updates)}\n\n{markdown(survivor_table(runs, updates))}\n")
        print(f"pairs in which the first is higher, {of_updates(updates)}\n\n{markdown(pair_table(runs, updates))}\n")


if __name__ == "__main__":
    main()
