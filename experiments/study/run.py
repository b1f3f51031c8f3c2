"""Run the study, or go on with it: one line of `runs.csv` and of `rollouts.csv` per run and rollout.

    python -m experiments.study.run --workers 2
    python -m experiments.study.run --objectives gmpo,mypackage.MyMean --seeds 0,1,2 --updates 4 --output runs/mine

Runs that are in `runs.csv` are not repeated. Each worker has one thread, so that two machines with the same libraries
and processors give the same numbers. Another processor makes another model to start from, whose digest the runs have:
runs of two models are not paired, and those of the other model count as missing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.options import count, counts, distinct, made_variants, number, seeds
from experiments.study import design
from experiments.study.design import Grid, Job, Ladder, Variant, ladders
from experiments.study.tasks import TASKS
from experiments.study.training import PROMPTS_PER_ROLLOUT, Measures, train
from experiments.tables import Row, append_rows, read_rows
from experiments.workers import run_all

FOLDER = Path("experiments/study/results")
_KEYS = ("task", "objective", "updates", "learning_rate", "seed", "start")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    parser = _parser()
    options = parser.parse_args(arguments)
    require_own_folder(parser, options)
    if odd := [number for number in options.updates if PROMPTS_PER_ROLLOUT % number]:
        parser.error(f"`--updates` has {odd[0]}, which does not divide {PROMPTS_PER_ROLLOUT}, the prompts of a rollout")
    grid = Grid(options.seeds, options.updates, tuple(sorted(options.learning_rates)))
    todo = list(ladders(options.task, options.objectives, grid))
    known = _lengths(options.output, options.task)
    if known - {options.rollouts}:
        parser.error(
            f"`--rollouts` is {options.rollouts}, but {options.output} has runs of {sorted(known)} rollouts, which "
            "cannot be compared; pass the same number, or another `--output`"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    start = TASKS[options.task]().start  # the model is made once, before the workers
    rows = [row for row in read_rows(options.output / "runs.csv") if row["task"] == options.task]
    if others := sum(row.get("start") != start for row in rows):
        print(f"{others} of {len(rows)} runs began from another model than {start}: they are kept, and not continued")
    queue = [(ladder, start, options.output, options.rollouts) for ladder in todo]
    run_all(_climb, queue, options.workers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), default="addition", help="Task; addition without it.")
    names = "Variants of the study or import paths, by commas; all without it."
    parser.add_argument("--objectives", type=variants, default=(), help=names)
    parser.add_argument("--seeds", type=seeds, default=design.SEEDS, help="Seeds, by commas.")
    updates = design.UPDATES_PER_ROLLOUT
    parser.add_argument("--updates", type=counts, default=updates, help="Updates per rollout, by commas.")
    rates = design.LEARNING_RATES
    parser.add_argument("--learning_rates", type=_rates, default=rates, help="Learning rates, by commas.")
    parser.add_argument(
        "--rollouts", type=count, default=design.ROLLOUTS, help=f"Rollouts of a run; {design.ROLLOUTS} without it."
    )
    parser.add_argument("--workers", type=count, default=1, help="Runs at the same time; 1 without it.")
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"Folder of the results; {FOLDER} without it.")
    return parser


def require_own_folder(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse to put a reader's own objectives among the results of the documentation."""
    own = [each.name for each in options.objectives if each not in (*design.CORE, *design.FURTHER)]
    if own and options.output == FOLDER:
        parser.error(f"`--objectives` has {own[0]}, which is not of the study; pass a folder of your own as `--output`")


def _rates(text: str) -> tuple[float, ...]:
    words = "a number above 0"
    return distinct([number(part, float, words, lambda rate: 0 < rate < math.inf) for part in text.split(",")])


def _lengths(output: Path, task: str) -> set[int]:
    """Return the numbers of rollouts of the runs of a task, without those that gradients that are not finite ended."""
    whole = {_key(row) for row in read_rows(output / "runs.csv") if row["task"] == task and row["sampled"]}
    last: dict[tuple[str, ...], int] = defaultdict(int)
    for row in read_rows(output / "rollouts.csv"):
        last[_key(row)] = max(last[_key(row)], int(row["rollout"]))
    return {last[key] + 1 for key in whole & last.keys()}


def variant(name: str) -> Variant:
    """Return the variant of the study with this name, or a new one for a recipe or an import path."""
    known = {variant.name: variant for variant in (*design.CORE, *design.FURTHER)}
    return known.get(name, Variant(name, name))


variants = partial(made_variants, variant=variant)  # the type of an argument


def _climb(task: tuple[Ladder, str, Path, int]) -> None:
    """Make the runs of a ladder that are missing, up to the second collapse in a row."""
    ladder, start, output, rollouts = task
    done = {_key(row): row for row in read_rows(output / "runs.csv")}
    collapses = 0
    for job in ladder.jobs:
        row = done.get(_key_of(job, start)) or _made(job, start, rollouts, output, ladder.jobs[-1].learning_rate)
        collapses = collapses + 1 if float(row["collapsed"]) else 0
        if collapses == 2:
            return


def _made(job: Job, start: str, rollouts: int, output: Path, highest_rate: float) -> Row:
    started = time.perf_counter()
    found, rows = train(job, rollouts)
    about = dict(zip(_KEYS, _key_of(job, start), strict=True))
    append_rows(output / "rollouts.csv", [{**about, **_cells(row, digits=3)} for row in rows])
    seconds = time.perf_counter() - started
    made = {**about, **_cells({"highest_rate": highest_rate, **found, "seconds": seconds}, digits=6)}
    append_rows(output / "runs.csv", [made])
    print(" ".join(about.values()), f"reward {made['reward_last']}", flush=True)
    return made


def _key_of(job: Job, start: str) -> tuple[str, ...]:
    return (job.task, job.variant.name, str(job.updates), f"{job.learning_rate:g}", str(job.seed), start)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in _KEYS)  # earlier results have no `start`


def _cells(measures: Measures, digits: int) -> Row:
    return {name: "" if value is None else f"{value:.{digits}g}" for name, value in measures.items()}


if __name__ == "__main__":
    main()
