"""Run the study, or go on with it: one line of `runs.csv` and of `rollouts.csv` per run and rollout.

    python -m experiments.study.run --workers 2
    python -m experiments.study.run --objectives gmpo,mypackage.MyMean --seeds 0,1,2 --updates 4 --output runs/mine

Runs that are in `runs.csv` are not repeated. Each worker has one thread, so that two machines with the same libraries
give the same numbers.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import logging
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.study import design
from experiments.study.design import Grid, Job, Ladder, Variant, ladders
from experiments.study.tasks import TASKS
from experiments.study.training import Measures, train

FOLDER = Path("experiments/study/results")
Row = dict[str, str]
_KEYS = ("task", "objective", "updates", "learning_rate", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    options = _parser().parse_args(arguments)
    names = list(filter(None, options.objectives.split(",")))
    rates = sorted(float(rate) for rate in options.learning_rates.split(","))
    grid = Grid(_integers(options.seeds), _integers(options.updates), tuple(rates))
    todo = list(ladders(options.task, tuple(variant(name) for name in names), grid))
    options.output.mkdir(parents=True, exist_ok=True)
    TASKS[options.task]().model.prepare()  # once, before the workers
    queue = [(ladder, options.output, options.rollouts) for ladder in todo]
    context = multiprocessing.get_context("spawn")
    # A worker is replaced now and then, so that memory does not grow.
    with context.Pool(options.workers, _one_thread, maxtasksperchild=10) as pool:
        for _ in pool.imap_unordered(_climb, queue, chunksize=1):
            pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), default="addition")
    parser.add_argument(
        "--objectives", default="", help="Variants of the study or import paths, by commas; all if empty."
    )
    parser.add_argument("--seeds", default=_by_commas(design.SEEDS), help="Seeds, by commas.")
    updates = _by_commas(design.UPDATES_PER_ROLLOUT)
    parser.add_argument("--updates", default=updates, help="Updates per rollout, by commas.")
    rates = _by_commas(design.LEARNING_RATES)
    parser.add_argument("--learning_rates", default=rates, help="Learning rates, by commas.")
    parser.add_argument("--rollouts", type=int, default=design.ROLLOUTS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=FOLDER)
    return parser


def _by_commas(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def variant(name: str) -> Variant:
    """Return the variant of the study with this name, or a new one for a recipe or an import path."""
    known = {variant.name: variant for variant in (*design.CORE, *design.FURTHER)}
    return known.get(name, Variant(name, name))


def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _climb(task: tuple[Ladder, Path, int]) -> None:
    """Make the runs of a ladder that are missing, up to the second collapse in a row."""
    ladder, output, rollouts = task
    done = {_key(row): row for row in read_rows(output / "runs.csv")}
    collapses = 0
    for job in ladder.jobs:
        row = done.get(_key_of(job)) or _made(job, rollouts, output)
        collapses = collapses + 1 if float(row["collapsed"]) else 0
        if collapses == 2:
            return


def _made(job: Job, rollouts: int, output: Path) -> Row:
    started = time.perf_counter()
    found, rows = train(job, rollouts)
    about = dict(zip(_KEYS, _key_of(job), strict=True))
    append_rows(output / "rollouts.csv", [{**about, **_cells(row)} for row in rows])
    made = {**about, **_cells({**found, "seconds": time.perf_counter() - started})}
    append_rows(output / "runs.csv", [made])
    print(" ".join(about.values()), f"reward {made['reward_last']}", flush=True)
    return made


def _key_of(job: Job) -> tuple[str, ...]:
    return (job.task, job.variant.name, str(job.updates), f"{job.learning_rate:g}", str(job.seed))


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in _KEYS)


def _cells(measures: Measures) -> Row:
    return {name: "" if value is None else f"{value:.6g}" for name, value in measures.items()}


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none if it does not exist; a half line at the end is dropped."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows; processes that do so at the same time wait for each other."""
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
