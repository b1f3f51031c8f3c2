"""Run the flow-matching experiment, or go on with it.

    python -m experiments.flow.run --workers 2 --output runs/flow
    python -m experiments.flow.run --objectives flow_grpo,mypackage.MyMean --seeds 0,1,2 --output runs/flow

Each run adds its rows to `evaluations.csv`, `steps.csv` and `samples.csv`, and then one to `runs.csv`; runs that are
there are not repeated. Each worker has one thread. A folder holds runs from one model: another processor makes another
model to start from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.flow import design
from experiments.flow.training import Job, train
from experiments.options import count, made_variants, seeds
from experiments.start import require_start, weights_digest
from experiments.tables import Row, append_rows, read_rows
from experiments.workers import run_all
from lightning_modules.flow.mixture import MixtureWarmStart

FOLDER = Path("experiments/flow/results")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing."""
    parser = _parser()
    options = parser.parse_args(arguments)
    own = [each.name for each in options.objectives if each not in design.VARIANTS]
    if own and options.output == FOLDER:
        parser.error(
            f"`--objectives` has {own[0]}, which is not of the experiment; pass a folder of your own as `--output`"
        )
    done = read_rows(options.output / "runs.csv")
    if other := sorted({row["rollouts"] for row in done} - {str(options.rollouts)}):
        parser.error(
            f"`--rollouts` is {options.rollouts}, but {options.output} has runs of {other[0]} rollouts, which cannot "
            "be compared; pass the same number, or another `--output`"
        )
    known = {(row["objective"], row["seed"]) for row in done}
    jobs = [Job(variant, seed, options.rollouts) for seed in options.seeds for variant in options.objectives]
    missing = [job for job in jobs if (job.variant.name, str(job.seed)) not in known]
    if not missing:
        return
    start = weights_digest(MixtureWarmStart().load().state_dict())  # the model is made once, before the workers
    require_start(parser, options.output, done, start)
    options.output.mkdir(parents=True, exist_ok=True)
    run_all(_made, [(job, start, options.output) for job in missing], options.workers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    variants = partial(made_variants, variant=design.variant)
    names = "Variants of the experiment or import paths, by commas; all without it."
    parser.add_argument("--objectives", type=variants, default=design.VARIANTS, help=names)
    parser.add_argument("--seeds", type=seeds, default=design.SEEDS, help="Seeds, by commas.")
    parser.add_argument(
        "--rollouts", type=count, default=design.ROLLOUTS, help=f"Rollouts of a run; {design.ROLLOUTS} without it."
    )
    parser.add_argument("--workers", type=count, default=1, help="Runs at the same time; 1 without it.")
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"Folder of the results; {FOLDER} without it.")
    return parser


def _made(task: tuple[Job, str, Path]) -> None:
    """Make a run, and append what it measured; the samples of the first seed are enough for pictures."""
    job, start, output = task
    started = time.process_time()
    found = train(job)
    about = {"objective": job.variant.name, "seed": str(job.seed)}
    parts = {"evaluations": found.evaluations, "steps": found.steps}
    if job.seed == design.SEEDS[0]:
        parts["samples"] = found.samples
    for name, rows in parts.items():
        append_rows(output / f"{name}.csv", [{**about, **_cells(row, name)} for row in rows])
    seconds = f"{time.process_time() - started:.1f}"
    about_run = {**about, "rollouts": str(job.rollouts), "start": start, "processor_seconds": seconds}
    append_rows(output / "runs.csv", [about_run])
    last = found.evaluations[-1]
    print(*about.values(), f"proxy {last['proxy']:.3f} gold {last['gold']:.3f}", flush=True)


def _cells(values: Mapping[str, float], name: str) -> Row:
    digits = 4 if name == "samples" else 6
    return {key: f"{value:.{digits}g}" for key, value in values.items()}


if __name__ == "__main__":
    main()
