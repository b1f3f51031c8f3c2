"""A GRPO job by this project and by the GRPOTrainer of TRL, in turn, each run in a process of its own.

A rollout step is one rollout and its updates. The scripts that import this module say what is trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

SIDES = ("here", "trl")
_PHASES = ("sampling", "forward", "backward", "optimizer")  # the rest of a step is everything else
_EQUAL = "frac_reward_zero_std"  # metric of both libraries
Reward = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Job:
    """A training job with GRPO's objective, no KL penalty and AdamW.

    Args:
        model: folder of the initial model.
        examples: prompts.
        reward: reward of a completion.
        prompts: number of prompts of a rollout.
        group_size: number of completions per prompt.
        updates: number of optimizer steps of a rollout.
        length: maximum number of tokens of a completion.
        engine: `transformers` or `vllm`, which samples on both sides. TRL gives vLLM no precision, so it is bfloat16,
            and corrects for the difference from the trainer. Here this project does both, too.
        precision: precision of Lightning's trainer, 32-true or bf16-mixed.
    """

    model: str
    examples: Sequence[Mapping[str, Any]]
    reward: Reward
    prompts: int
    group_size: int
    updates: int
    length: int
    engine: str = "transformers"
    precision: str = "32-true"
    learning_rate: float = 1e-6


class Stopwatch:
    """Seconds of each rollout step, and of its phases."""

    def __init__(self, job: Job, skipped: int) -> None:
        self._updates, self._skipped = job.updates, skipped
        self._ends: list[float] = []
        self._spent: dict[str, float] = defaultdict(float)
        self._inside = False
        self.tokens: list[float] = []  # mean length of the completions of each rollout
        self.equal: list[float] = []  # share of groups with equal rewards, which have no gradient

    def update_ended(self) -> None:
        """Record the end of an update."""
        self._ends.append(_now())
        if len(self._ends) == self._updates * self._skipped:
            self._spent.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within the context to a phase, unless it lies within another one."""
        if self._inside:
            yield
            return
        self._inside, started = True, _now()
        try:
            yield
        finally:
            self._spent[name] += _now() - started
            self._inside = False

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Add the time of a method of an object to a phase."""
        original = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return original(*arguments, **options)

        setattr(owner, method, timed)

    def result(self) -> dict[str, Any]:
        """Return the median step, the mean of each phase in a step, in seconds, and the peak memory in MiB."""
        ends = self._ends[self._updates * self._skipped - 1 :: self._updates]
        steps = [end - start for start, end in itertools.pairwise(ends)]
        on_gpu = torch.cuda.is_available()
        peak = (
            torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        return {
            "seconds": statistics.median(steps),
            "phases": {name: self._spent[name] / len(steps) for name in _PHASES},
            "peak_mib": peak / 2**20,
            "tokens": statistics.mean(self.tokens[self._skipped :]),
            "equal": statistics.mean(self.equal),
        }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_here(job: Job, rollouts: int, watch: Stopwatch) -> None:
    """Train with this project."""
    from lightning import Callback, Trainer, seed_everything

    from aggregate_po import SequenceCorrection
    from aggregate_po.recipes import grpo
    from lightning_modules import PolicyModule, RolloutDataModule
    from lightning_modules.rollouts import VLLM, TransformersEngine

    class Timed(Callback):
        def on_before_backward(self, *_: Any) -> None:
            self.backward = watch.phase("backward")
            self.backward.__enter__()

        def on_after_backward(self, *_: Any) -> None:
            self.backward.__exit__(None, None, None)

        def on_before_optimizer_step(self, *_: Any) -> None:
            self.optimizer = watch.phase("optimizer")
            self.optimizer.__enter__()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.optimizer.__exit__(None, None, None)
            watch.update_ended()
            watch.equal.append(float(trainer.callback_metrics[_EQUAL]))

    seed_everything(0)
    module = PolicyModule(job.model, grpo(), learning_rate=job.learning_rate, warmup_steps=0)
    engine = VLLM(dtype="bfloat16") if job.engine == "vllm" else TransformersEngine()
    correction = {"old_log_probs": "trainer", "correction": SequenceCorrection(max_weight=3.0, outside="mask")}
    generate = engine.generate

    def noted(*arguments: Any) -> Any:
        completions = generate(*arguments)
        watch.tokens.append(float(completions.mask.sum(dim=-1).double().mean()))
        return completions

    engine.generate = noted  # type: ignore[method-assign]
    watch.watch(engine, "load_policy", "sampling")
    watch.watch(engine, "generate", "sampling")
    watch.watch(module, "training_step", "forward")
    data = RolloutDataModule(
        job.examples,
        job.reward,
        group_size=job.group_size,
        prompts_per_rollout=job.prompts,
        updates_per_rollout=job.updates,
        max_completion_length=job.length,
        truncated="score",
        rollouts=engine,
        **(correction if job.engine == "vllm" else {}),
    )
    trainer = Trainer(
        devices=1,
        precision=job.precision,
        max_steps=job.updates * rollouts,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[Timed()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)


def run_trl(job: Job, rollouts: int, watch: Stopwatch) -> None:
    """Train with TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lightning_modules.rollouts.vllm_options import CPU_CACHE_BYTES

    on_gpu = torch.cuda.is_available()
    # On a processor vLLM's cache has the size that this project gives it, on a GPU the share of memory below.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CPU_CACHE_BYTES // 2**30)

    class Timed(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.update_ended()

        def on_log(self, *_: Any, logs: Mapping[str, Any], **__: Any) -> None:
            watch.equal += [logs[_EQUAL]] if _EQUAL in logs else []  # the last line sums up the training

    def reward(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        watch.tokens.append(statistics.mean(len(ids) for ids in completion_ids))
        rows = [{name: columns[name][row] for name in own} for row in range(len(completions))]
        return [job.reward(text, row) for text, row in zip(completions, rows, strict=True)]

    own = [name for name in job.examples[0] if name != "prompt"]
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=not on_gpu,
            bf16=job.precision == "bf16-mixed",
            gradient_checkpointing=False,
            per_device_train_batch_size=job.prompts * job.group_size // job.updates,
            steps_per_generation=job.updates,
            num_generations=job.group_size,
            max_completion_length=job.length,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            max_steps=job.updates * rollouts,
            logging_steps=job.updates,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **(vllm if job.engine == "vllm" else {}),
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, trust_remote_code=False),
            processing_class=AutoTokenizer.from_pretrained(job.model, padding_side="left", trust_remote_code=False),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([dict(example) for example in job.examples]),
            callbacks=[Timed()],
        )
        watch.watch(trainer, "_generate", "sampling")
        watch.watch(trainer, "compute_loss", "forward")
        watch.watch(trainer.accelerator, "backward", "backward")
        watch.watch(trainer.accelerator, "clip_grad_norm_", "optimizer")
        create = trainer.create_optimizer

        def created(*arguments: Any) -> Any:
            optimizer = create(*arguments)
            watch.watch(optimizer, "step", "optimizer")
            return optimizer

        trainer.create_optimizer = created
        trainer.train()


def parser_of(description: str | None, pairs: int, rollouts: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=pairs, help="number of runs of each side")
    parser.add_argument("--rollouts", type=int, default=rollouts, help="number of rollout steps of a run")
    parser.add_argument("--skipped", type=int, default=1, help="number of first rollout steps that are not counted")
    parser.add_argument(
        "--engine", choices=["transformers", "vllm"], default="transformers", help="engine of both sides"
    )
    parser.add_argument("--precision", default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--side", choices=SIDES, help="run one side only, and print its result")
    return parser


def run_side(job: Job, options: argparse.Namespace) -> None:
    """Run one side in this process, and print its result as JSON."""
    watch = Stopwatch(job, options.skipped)
    (run_here if options.side == "here" else run_trl)(job, options.rollouts, watch)
    print(json.dumps(watch.result()))


def compare(arguments: Sequence[str], pairs: int, module: str) -> None:
    """Run both sides in turn of a module with some arguments; print each run, medians and the range of the ratio."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(pairs):
        for side in SIDES:
            command = [sys.executable, "-m", module, *arguments, "--side", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[side].append(json.loads(output.strip().splitlines()[-1]))
            print(f"{side:>4}: a run of {results[side][-1]['seconds']:.3f} s a step", file=sys.stderr, flush=True)
    for side, runs in results.items():
        whole = statistics.median(run["seconds"] for run in runs)
        phases = {name: statistics.median(run["phases"][name] for run in runs) for name in _PHASES}
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in phases.items())
        tokens, peak = (statistics.median(run[name] for run in runs) for name in ("tokens", "peak_mib"))
        equal = statistics.mean(run["equal"] for run in runs)
        sizes = f"{tokens:.1f} tokens per completion, {equal:.0%} of the groups without gradient"
        print(f"{side:>4}: {whole:.3f} s ({parts}), {sizes}, peak {peak:,.0f} MiB")
    ratios = [trl["seconds"] / here["seconds"] for here, trl in zip(results["here"], results["trl"], strict=True)]
    spread = f"from {min(ratios):.2f} to {max(ratios):.2f} in {pairs} pairs"
    print(f"time of TRL over that of this project: median {statistics.median(ratios):.2f}, {spread}", flush=True)
