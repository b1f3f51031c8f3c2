"""Growth of time and memory of a training step with completion length, group size, and number of processes.

A step is an optimizer step of `Trainer.fit`, from its first micro-batch to the end of its update, on completions of
equal length, which are not sampled from the model. Memory is the peak of rank 0 during the step, minus its memory
before the step. A slope is the exponent of a power law, fitted to the medians; a slope of 1 is linear cost. Each run
is a separate process with one thread per core, or one thread per rank where processes are compared:

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
    """Settings of one run.

    Args:
        length: tokens of each completion.
        group_size: completions per prompt.
        prompts: prompts of a step, over all processes.
        prompt_length: tokens of each prompt.
        layout: a name of `LAYOUTS`.
        processes: number of training processes.
        strategy: name of the distribution strategy.
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


class FixedLengthEngine(RolloutEngine):
    """Returns random completions of one length."""

    def load_policy(self, model: Any) -> None:
        """Ignore the policy."""

    def generate(self, prompts: Any, sampling: Any) -> Completions:
        """Return random tokens."""
        shape = len(prompts) * sampling.samples_per_prompt, sampling.max_completion_length
        return Completions(
            token_ids=torch.randint(5, 200, shape),
            mask=torch.ones(shape, dtype=torch.bool),
            log_probs=torch.full(shape, -9.0),
            finished=torch.ones(shape[0], dtype=torch.bool),
        )


class Steps(Callback):
    """Records seconds and peak bytes of each step."""

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
    """Save a randomly initialized model, and a tokenizer with one token per digit."""
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
    """Return the medians of one run without its first step."""
    warnings.filterwarnings("ignore")
    data = RolloutDataModule(
        [{"prompt": f"{number % 10}" * point.prompt_length} for number in range(point.prompts)],
        reward=lambda text, example: float(len(text) % 2),
        rollouts=FixedLengthEngine(),
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
    """Return the exponent of a power law fitted to the costs."""
    x, y = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each point")
    parser.add_argument("--steps", type=int, default=3, help="number of measured steps of a run")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="NAME")
    parser.add_argument("--point", type=json.loads, help="run this point only, and print its metrics")
    parser.add_argument("--model", help="folder of the model of `--point`")
    arguments = parser.parse_args()
    if arguments.point:
        metrics = measured(Point(**arguments.point), arguments.model, arguments.steps)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(json.dumps(metrics))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name in arguments.sweeps:
            axis, points = SWEEPS[name]
            # Ranks on the cores of one machine get the same number of threads as the single process of the comparison.
            threads = {"OMP_NUM_THREADS": "1"} if axis == "processes" else {}
            rounds = range(arguments.rounds)
            runs = [[run(point, folder, arguments.steps, threads) for point in points] for _ in rounds]
            report(name, axis, points, runs)


def run(point: Point, folder: str, steps: int, environment: dict[str, str]) -> dict[str, float]:
    """Return the metrics of one run in a separate process."""
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point)), "--model", folder, "--steps", str(steps)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def report(name: str, axis: str, points: list[Point], runs: list[list[dict[str, float]]]) -> None:
    """Print the medians over the rounds, and their slopes."""
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
