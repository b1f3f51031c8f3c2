"""Cost of a token in sampling and in training, and peak memory, for lengths and group sizes of SmolLM2-135M.

A point is a length and a group size. Its completions of one prompt are sampled, to that length each, and trained on in
one update of `Trainer.fit`, in micro-batches of a bounded number of tokens. Each point is a process with one thread;
seconds are those of the processor. Before the measured step there is one on a few tokens, so that gradients and the
optimizer's state are there. Memory is the peak of the process since before the model was loaded, with the estimate of
`aggregate-po plan`. Each point appends a row to a CSV file, and points with a row are not repeated:

    python -m experiments.benchmarks.token_costs --lengths 64 128 256 --groups 4
    python -m experiments.benchmarks.token_costs --lengths 64 --groups 4 8 16

The table has all rows of the file. By arithmetic, a token costs a part of each pass over the weights, and attention in
proportion to the tokens before it: a + b * length + c / length, fitted to the lengths of a group size where there are
at least four. Residuals from that line show steps.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer, seed_everything
from transformers import AutoTokenizer

from aggregate_po.recipes import grpo
from experiments.benchmarks.process_memory import peak_resident_bytes, reset_peak, resident_bytes
from experiments.benchmarks.real_model_vs_trl import problems
from experiments.options import count
from experiments.tables import Row, append_rows, markdown, read_rows
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.planning.job import job_plan
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.rollouts import Completions, TransformersEngine

WARM_UP = 8  # tokens of a completion in the step before the measured one
MIB = 2**20


class FullLengths(TransformersEngine):
    """Samples completions that no token ends, and in the first rollout short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts = 0
        self.seconds = 0.0

    def generate(self, prompts: Any, sampling: Any) -> Completions:
        """Sample, and record the seconds."""
        self.rollouts += 1
        length = sampling.max_completion_length if self.rollouts > 1 else WARM_UP
        reset_peak()
        started = time.process_time()
        completions = super().generate(prompts, replace(sampling, stop_token_ids=(), max_completion_length=length))
        self.seconds = time.process_time() - started
        return completions


class Measured(Callback):
    """Records the peak of the last rollout, and seconds and peak of the last update."""

    begins = True

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock at the first micro-batch."""
        if self.begins:
            self.rollout_peak = peak_resident_bytes()
            reset_peak()
            self.started = time.process_time()
        self.begins = False

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """Stop the clock after the last micro-batch."""
        if batch.closes_update:
            self.seconds, self.training_peak = time.process_time() - self.started, peak_resident_bytes()
            self.begins = True


def measured(model: str, length: int, group_size: int, tokens: int) -> Row:
    """Return the row of one point; the thread of this process is the only one that counts."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    example, numbers = problems(1)[0], itertools.count()
    prompt = len(AutoTokenizer.from_pretrained(model, trust_remote_code=False)(example["prompt"]).input_ids)
    at_once = max((tokens - prompt) // length, 1)
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": -(-group_size // at_once)}

    def parts() -> tuple[PolicyModule, RolloutDataModule, FullLengths]:
        engine = FullLengths()
        data = RolloutDataModule(
            [example],
            lambda completion, example: float(next(numbers)),  # so that every group has a gradient
            rollouts=engine,
            group_size=group_size,
            prompts_per_rollout=1,
            max_completion_length=length,
            truncated="score",
        )
        return PolicyModule(model, grpo(), learning_rate=1e-6, warmup_steps=0), data, engine

    plan = job_plan(*parts()[:2], TrainerSettings.of({"precision": None, **options})).memory
    module, data, engine = parts()
    watch, before = Measured(), resident_bytes()
    trainer = Trainer(
        **options,
        max_steps=2,
        max_epochs=-1,
        check_val_every_n_epoch=1_000_000,  # gradients are dropped before a validation
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, data)
    numbers_of = {
        "length": length,
        "group_size": group_size,
        "prompt": prompt,
        "micro_batches": options["accumulate_grad_batches"],
        "sampling_seconds": round(engine.seconds, 3),
        "training_seconds": round(watch.seconds, 3),
        "rollout_planned": plan.total("rollout"),
        "rollout_resident": watch.rollout_peak - before,
        "training_planned": max(plan.total("training"), plan.total("update")),
        "training_resident": watch.training_peak - before,
    }
    return {name: str(number) for name, number in numbers_of.items()}


def residuals(lengths: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Return how far each cost is above `a + b * length + c / length`, fitted to all, as a share of it.

    Each cost has the same weight relative to its size. With fewer than four lengths there is no residual to speak of,
    and all are NaN.
    """
    if len(lengths) < 4:
        return [float("nan")] * len(lengths)
    size, cost = np.array(lengths, dtype=float), np.array(costs)
    terms = np.stack([np.ones_like(size), size, 1 / size], axis=1)
    solution = np.linalg.lstsq(terms / cost[:, None], np.ones_like(cost), rcond=None)[0]
    return (cost / (terms @ solution) - 1).tolist()


def table(rows: Sequence[Row]) -> str:
    """Return all points, by group size and length."""
    head = ["group size", "length", "ms per sampled token", "off the line", "ms per trained token", "off the line"]
    head += ["rollout, planned MiB", "resident", "training, planned MiB", "resident"]
    cells = [head]
    points = sorted(rows, key=lambda row: (int(row["group_size"]), int(row["length"])))
    for group, members in itertools.groupby(points, key=lambda row: int(row["group_size"])):
        part = list(members)
        lengths = [int(row["length"]) for row in part]
        costs = {
            phase: [1e3 * float(row[f"{phase}_seconds"]) / (group * int(row["length"])) for row in part]
            for phase in ("sampling", "training")
        }
        off = {phase: residuals(lengths, values) for phase, values in costs.items()}
        for index, row in enumerate(part):
            line = [str(group), f"{lengths[index]:,}"]
            for phase, values in costs.items():
                share = off[phase][index]
                line += [f"{values[index]:.2f}", "" if share != share else f"{share:+.1%}"]
            names = ("rollout_planned", "rollout_resident", "training_planned", "training_resident")
            cells.append(line + [f"{int(row[name]) / MIB:,.0f}" for name in names])
    return markdown(iter(cells))


def main() -> None:
    """Measure the points that are missing, from the smallest to the largest, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"), help="folder of the model")
    parser.add_argument("--lengths", type=count, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--groups", type=count, nargs="+", default=[4, 8, 16, 32, 64], help="completions of the prompt")
    parser.add_argument("--tokens", type=count, default=2304, help="most tokens of a micro-batch with its prompt")
    parser.add_argument("--file", type=Path, default=Path("runs/token_costs.csv"), help="results")
    parser.add_argument("--here", action="store_true", help="measure one point in this process, and append its row")
    options = parser.parse_args()
    if options.here:
        (length,), (group,) = options.lengths, options.groups
        append_rows(options.file, [measured(str(options.model), length, group, options.tokens)])
        return
    if not options.model.exists():
        from experiments.smollm2 import convert

        convert(options.model)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    shared = ["--model", str(options.model), "--tokens", str(options.tokens), "--file", str(options.file), "--here"]
    points = sorted(itertools.product(options.lengths, options.groups), key=lambda point: (point[0] * point[1], point))
    for length, group in points:
        done = {(int(row["length"]), int(row["group_size"])) for row in read_rows(options.file)}
        if (length, group) not in done:
            point = ["--lengths", str(length), "--groups", str(group)]
            command = [sys.executable, "-m", "experiments.benchmarks.token_costs", *point, *shared]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        print(f"{length:,} tokens, groups of {group}: done", flush=True)
    print(table(read_rows(options.file)))


if __name__ == "__main__":
    main()
