"""Rollout steps per second of this project and of TRL's GRPOTrainer, run in turn on the same work.

A rollout step is one rollout and its two updates: 16 prompts with 8 completions of at most 40 tokens, GRPO's
objective, no KL, AdamW, and a checkpoint of the addition model that works out every sum and gets about half of them
right, as in most of a run of the default configuration. Each run is a separate process; its first rollouts are
not counted. TRL must be installed:

    .venv/bin/pip install --constraint constraints.txt trl==1.16.0
    .venv/bin/python experiments/benchmarks/rollout_step_vs_trl.py --pairs 5
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

GROUP_SIZE, PROMPTS, UPDATES, MAX_LENGTH, LEARNING_RATE = 8, 16, 2, 40, 1e-6


class StepTimer:
    """Times rollout steps by the ends of updates."""

    def __init__(self, warmup_rollouts: int) -> None:
        self._warmup_rollouts = warmup_rollouts
        self._ends: list[float] = []

    def update_ended(self) -> None:
        """Record the end of an update."""
        self._ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds of each counted rollout step."""
        ends = self._ends[UPDATES * self._warmup_rollouts - 1 :: UPDATES]
        return [end - start for start, end in itertools.pairwise(ends)]


def checkpoint() -> str:
    """Return the folder of the initial model of both sides."""
    from lightning_modules.addition import AdditionWarmStart

    return AdditionWarmStart(guess_share=0.0).prepare()


def run_here(rollouts: int, timer: StepTimer, objective: str) -> None:
    """Train with this project."""
    from lightning import Callback, Trainer, seed_everything

    from aggregate_po import recipes
    from lightning_modules import PolicyModule, RolloutDataModule, boxed_answer
    from lightning_modules.addition import AdditionProblems

    class Timed(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            timer.update_ended()

    seed_everything(0)
    module = PolicyModule(checkpoint(), getattr(recipes, objective)(), learning_rate=LEARNING_RATE, warmup_steps=0)
    data = RolloutDataModule(
        AdditionProblems(4096),
        boxed_answer,
        group_size=GROUP_SIZE,
        prompts_per_rollout=PROMPTS,
        updates_per_rollout=UPDATES,
        max_completion_length=MAX_LENGTH,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=UPDATES * rollouts,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[Timed()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)


def run_trl(rollouts: int, timer: StepTimer) -> None:
    """Train with TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lightning_modules import boxed_answer
    from lightning_modules.addition import AdditionProblems

    class Timed(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            timer.update_ended()

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [boxed_answer(text, {"answer": one}) for text, one in zip(completions, answer, strict=True)]

    path = checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROMPTS * GROUP_SIZE // UPDATES,
            steps_per_generation=UPDATES,
            num_generations=GROUP_SIZE,
            max_completion_length=MAX_LENGTH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            max_steps=UPDATES * rollouts,
            logging_steps=UPDATES,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False),
            processing_class=AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([dict(example) for example in AdditionProblems(4096)]),
            callbacks=[Timed()],
        )
        trainer.train()


def timed_in_own_process(side: str, rollouts: int, objective: str) -> float:
    """Return the median seconds of a rollout step of one run."""
    command = [sys.executable, __file__, "--side", side, "--rollouts", str(rollouts), "--objective", objective]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return statistics.median(json.loads(output.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="number of runs of each side")
    parser.add_argument(
        "--rollouts", type=int, default=20, help="number of rollout steps of a run; the first 4 are not counted"
    )
    parser.add_argument("--objective", default="grpo", help="recipe of the objective of this project")
    parser.add_argument("--side", choices=["here", "trl"], help="run one side only and print its seconds")
    arguments = parser.parse_args()
    if arguments.side:
        timer = StepTimer(warmup_rollouts=4)
        if arguments.side == "here":
            run_here(arguments.rollouts, timer, arguments.objective)
        else:
            run_trl(arguments.rollouts, timer)
        print(json.dumps(timer.seconds()))
        return
    checkpoint()
    ratios = []
    for pair in range(1, arguments.pairs + 1):
        here, trl = (timed_in_own_process(side, arguments.rollouts, arguments.objective) for side in ("here", "trl"))
        ratios.append(trl / here)
        print(f"pair {pair}: here {here:.3f} s, TRL {trl:.3f} s per rollout step, ratio {trl / here:.2f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
