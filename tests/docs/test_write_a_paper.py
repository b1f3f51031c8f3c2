"""The ten steps from a hypothesis to a plot run one after another, with smaller numbers."""

import csv
import shlex
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from experiments import workers
from experiments.study import fidelity, training
from experiments.study.tasks import TASKS, addition
from lightning_modules.__main__ import main
from tests.docs.test_snippets import ROOT, blocks, folder, write_files
from tests.experiments.study.test_run import InProcess
from tests.lightning_modules.command_line import length_reward

__all__ = ["folder"]

PAGE = ROOT / "docs" / "write-a-paper.md"
TINY = ["--data.prompts_per_rollout=4", "--data.group_size=4", "--data.max_completion_length=6"]
TINY += ["--data.truncated=score", "--data.reward=tests.lightning_modules.command_line.length_reward"]
TINY += ["--data.updates_per_rollout=2"]
# What a command gets besides its own arguments, so that it takes a few seconds.
SHORTER = {
    "experiments.exact.bias_variance": ["--length=2", "--problems=2"],
    "experiments.study.run": ["--rollouts=1", "--seeds=0", "--updates=2", "--learning_rates=1e-4", "--workers=1"],
    "record": [*TINY, "--rollouts=1", "--model.model_name={model}"],
    "fit": [
        *TINY,
        "--trainer.max_steps=4",
        "--model.model_name={model}",
        "--report.evaluate_every_n_steps=0",
        "--report.evaluate_before_training=false",
        "--report.evaluate_after_training=false",
        "--checkpoint.every_n_train_steps=100",
    ],
}


def commands():
    """Module and arguments of each command of the page, in order; the module of `aggregate-po` is empty."""
    for _, _, code, _ in blocks(PAGE, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            if program == "aggregate-po":
                yield "", arguments
            else:
                assert (program, arguments[0]) == ("python", "-m")
                yield arguments[1], arguments[2:]


@pytest.mark.slow
def test_the_commands_run_one_after_another(folder, tiny_model, monkeypatch, capsys):
    write_files(PAGE, folder)
    task = addition()
    model = replace(task.model, steps=2)
    short = replace(task, model=model, held_out=[task.held_out[0]], reward=length_reward)
    monkeypatch.setitem(TASKS, "addition", lambda: short)
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
    monkeypatch.setattr(training, "PROMPTS_PER_ROLLOUT", 2)
    for name, value in (("FROZEN", 2), ("FRESH", 2), ("UPDATES", (1,)), ("PROMPTS_PER_ROLLOUT", 2)):
        monkeypatch.setattr(fidelity, name, value)
    ran, threads = [], torch.get_num_threads()
    for module, arguments in commands():
        more = [text.format(model=tiny_model) for text in SHORTER.get(module or arguments[0], [])]
        if module:
            import_module(module).main([*arguments, *more])
        else:
            monkeypatch.setattr(sys, "argv", ["aggregate-po", *arguments, *more])
            main()
        ran.append(module or arguments[0])
    torch.set_num_threads(threads)
    assert len(ran) == 11
    assert "| `soft_mean.SoftMean` |" in capsys.readouterr().out
    made = {path.name for path in (folder / "runs" / "paper").iterdir()}
    assert made >= {"mean_values.svg", "weight_landscape.svg", "study_fidelity.pdf", "study_edges.svg", "soft.html"}
    for path in ("runs/comparison/objectives.csv", "runs/study/runs.csv", "runs/study/fidelity.csv"):
        with (folder / path).open(newline="") as file:
            assert "soft_mean.SoftMean" in {row["objective"] for row in csv.DictReader(file)}
