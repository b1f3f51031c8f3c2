"""Runs of the command line within the process of a test."""

import csv
from pathlib import Path

from lightning_modules.cli import run


def length_reward(completion, example):
    """A reward in which the completions of a random model differ."""
    return float(len(completion) % 7)


def arguments(model_folder, folder, *options):
    """Arguments of a `fit` of four steps, two updates of two micro-batches to a rollout, with held-out prompts."""
    return [
        "fit",
        f"--model.model_name={model_folder}",
        "--model.objective=aggregate_po.recipes.gmpo",
        "--model.learning_rate=1e-3",
        "--model.warmup_steps=0",
        "--data.dataset=lightning_modules.addition.AdditionProblems",
        "--data.dataset.size=16",
        "--data.validation=lightning_modules.addition.AdditionProblems",
        "--data.validation.size=4",
        "--data.validation.held_out=true",
        "--data.reward=tests.lightning_modules.command_line.length_reward",
        "--data.truncated=score",
        "--data.group_size=4",
        "--data.prompts_per_rollout=4",
        "--data.updates_per_rollout=2",
        "--data.max_completion_length=6",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.max_steps=4",
        "--trainer.accumulate_grad_batches=2",
        f"--trainer.default_root_dir={folder}",
        *options,
    ]


def fit(model_folder, folder, *options):
    """Run `fit` to its end, and return the command line with its trainer."""
    return run(arguments(model_folder, folder, *options))


def rows(folder):
    """Return the rows of the metrics of a run."""
    with (Path(folder) / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))
