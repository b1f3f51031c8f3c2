"""How time and memory of a training step grow with completion length, group size, and number of processes.

A step is an optimiser step of `Trainer.fit`, from its first micro-batch to the end of its update, on completions that
are all equally long; drawing them costs nothing here. Memory is the peak of the first process over what it had before
the step. A slope is the exponent of a power law, fitted to the medians; 1 is cost in proportion. Each run is a process
of its own, with as many threads as there are cores, or one for each rank where processes are compared:

    .venv/bin/python experiments/benchmarks/cost_slopes.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from process_memory import peak_resident_bytes, reset_peak, resident_bytes
from transformers import Qwen2Config, Qwen2ForCausalLM

from aggregate_po.recipes import grpo
from lightning_modules import PackedSequences, PolicyModule, RolloutDataModule, SharedPrompts
from lightning_modules.addition.warm_start import make_tokenizer
from lightning_modules.rollouts import Completions, RolloutEngine

LAYOUTS = {"shared": SharedPrompts, "packed": PackedSequences, "recomputed": lambda: PackedSequences(recompute=True)}
MICRO_BATCHES = 4


@dataclass(frozen=True)
class Point:
    """What one run does.

    Args:
        length: tokens of each completion.
        group_size: completions per prompt.
        prompts: of a step, over all processes.
        prompt_length: tokens of each prompt.
        layout: a name of `LAYOUTS`.
        processes: that train together.
        strategy: by which they do.
    """

    length: int = 128
    group_size: int = 4
    prompts: int = 4
    prompt_length: int = 64
    layout: str = "shared"
    processes: int = 1
    strategy: str = "ddp"


SWEEPS: dict[str, tuple[str, list[Point]]] = {
    "completion length, shared prompts": ("length", [Point(length=n) for n in (64, 128, 256, 512, 1024)]),
    "completion length, packed": ("length", [Point(length=n, layout="packed") for n in (64, 128, 256, 512)]),
    "completion length, recomputed": ("length", [Point(length=n, layout="recomputed") for n in (64, 128, 256, 512)]),
    "group size, shared prompts": (
        "group_size",
        [Point(group_size=n, prompt_length=512, length=64) for n in (2, 4, 8, 16, 32)],
    ),
    "group size, packed": (
        "group_size",
        [Point(group_size=n, prompt_length=512, length=64, layout="packed") for n in (2, 4, 8)],
    ),
    "processes, DDP": ("processes", [Point(length=256, processes=n) for n in (1, 2)]),
    "processes, FSDP2": ("processes", [Point(length=256, processes=n, strategy="fsdp") for n in (1, 2)]),
}


class Drawn(RolloutEngine):
    """Completions of one length, drawn from no policy."""

    def load_policy(self, model: Any) -> None:
        """Nothing."""

    def generate(self, prompts: Any, sampling: Any) -> Completions:
        """Tokens at random."""
        shape = len(prompts) * sampling.samples_per_prompt, sampling.max_completion_length
        return Completions(
            token_ids=torch.randint(5, 200, shape),
            mask=torch.ones(shape, dtype=torch.bool),
            log_probs=torch.full(shape, -9.0),
            finished=torch.ones(shape[0], dtype=torch.bool),
        )


class Steps(Callback):
    """Seconds and peak bytes of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes: list[int] = []
        self.begins = True

    def on_train_batch_start(self, *arguments: Any) -> None:
        if self.begins:
            reset_peak()
            self.before, self.started = resident_bytes(), time.perf_counter()
        self.begins = False

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        if batch.closes_update:
            self.seconds.append(time.perf_counter() - self.started)
            self.bytes.append(peak_resident_bytes() - self.before)
            self.begins = True


def make_model(folder: Path) -> None:
    """A model of random weights, and a tokenizer that makes one token of each digit."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def measured(point: Point, model: str, steps: int) -> dict[str, float]:
    """Medians of one run, its first step not counted."""
    warnings.filterwarnings("ignore")
    data = RolloutDataModule(
        [{"prompt": f"{number % 10}" * point.prompt_length} for number in range(point.prompts)],
        reward=lambda text, example: float(len(text) % 2),
        rollouts=Drawn(),
        group_size=point.group_size,
        prompts_per_rollout=point.prompts,
        max_completion_length=point.length,
    )
    counted = Steps()
    size = {"data_parallel_size": point.processes, "tensor_parallel_size": 1}
    alone = "auto" if point.processes == 1 else "ddp"
    trainer = Trainer(
        accelerator="cpu",
        devices=point.processes,
        strategy=ModelParallelStrategy(**size) if point.strategy == "fsdp" else alone,
        accumulate_grad_batches=MICRO_BATCHES,
        max_steps=steps + 1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[counted],
    )
    trainer.fit(PolicyModule(model, grpo(), layout=LAYOUTS[point.layout]()), data)
    return {"seconds": statistics.median(counted.seconds[1:]), "bytes": statistics.median(counted.bytes[1:])}


def slope(sizes: list[int], costs: list[float]) -> float:
    """Exponent of the power law nearest to the costs."""
    x, y = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each point")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a run")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="NAME")
    parser.add_argument("--point", type=json.loads, help="run this one only, and print its figures")
    parser.add_argument("--model", help="folder of its model")
    arguments = parser.parse_args()
    if arguments.point:
        figures = measured(Point(**arguments.point), arguments.model, arguments.steps)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name in arguments.sweeps:
            axis, points = SWEEPS[name]
            # Ranks that share the cores of one machine get as many threads as the one that they are compared with.
            threads = {"OMP_NUM_THREADS": "1"} if axis == "processes" else {}
            rounds = range(arguments.rounds)
            runs = [[run(point, folder, arguments.steps, threads) for point in points] for _ in rounds]
            report(name, axis, points, runs)


def run(point: Point, folder: str, steps: int, environment: dict[str, str]) -> dict[str, float]:
    """One run, in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point)), "--model", folder, "--steps", str(steps)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def report(name: str, axis: str, points: list[Point], runs: list[list[dict[str, float]]]) -> None:
    """Medians over the rounds, and their slopes."""
    sizes = [getattr(point, axis) for point in points]
    seconds, peaks = (
        [statistics.median(one[index][key] for one in runs) for index in range(len(points))]
        for key in ("seconds", "bytes")
    )
    print(f"{name}: slope of time {slope(sizes, seconds):.2f}, of memory {slope(sizes, peaks):.2f}")
    for point, size, second, peak in zip(points, sizes, seconds, peaks, strict=True):
        completions = point.prompts * point.group_size
        print(
            f"  {axis} {size:5}: {second:7.2f} s a step, {1000 * second / completions:8.1f} ms a completion, "
            f"{completions * point.length / second:7.0f} tokens per second, {peak / 2**20:7.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
