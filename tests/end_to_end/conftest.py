"""Runs of the command line as a user starts them: a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "experiments" / "configs" / "addition.yaml"

# What users write: a reward and an aggregator, each in a file of their own in the working folder.
USER_FILES = {
    "my_reward.py": '''
import sys

import numpy as np


def length_reward(completion, example):
    """Return a reward in which completions of a random model differ."""
    return float(len(completion) % 7)


def brief(completion, example):
    """Return the weight of a second reward, as NumPy computes it."""
    return np.float32(len(completion) < 9)


def leaving(completion, example):
    sys.exit()


def interrupted(completion, example):
    raise KeyboardInterrupt
''',
    "my_means.py": '''
from dataclasses import dataclass
from aggregate_po import PerCompletion, TokenAggregator, TokenRatios, masked_logsumexp


@dataclass(frozen=True)
class LehmerMean(TokenAggregator):
    """Ratio of consecutive power sums, `sum r^p / sum r^(p-1)`."""

    order: float = 2.0

    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        x, mask = tokens.log_ratio, tokens.response_mask
        return masked_logsumexp(self.order * x, mask) - masked_logsumexp((self.order - 1) * x, mask)
''',
}


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a run; models that it makes are kept for the other tests, in whichever process these run."""
    of_this_process = tmp_path_factory.getbasetemp()
    folder = of_this_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_this_process
    return {**os.environ, "AGGREGATE_PO_CACHE": str(folder / "cache")}


@pytest.fixture
def start(tmp_path, environment) -> Callable[..., subprocess.Popen[str]]:
    """Start `aggregate-po` with arguments, in an empty working folder that holds the user's files."""
    for name, text in USER_FILES.items():
        (tmp_path / name).write_text(text)

    def started(arguments: Sequence[object], **variables: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("aggregate-po")), *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


@pytest.fixture
def run(start) -> Callable[..., tuple[int, str]]:
    """Run `aggregate-po` to its end, and return the exit status and the output."""

    def ran(arguments: Sequence[object], **variables: str) -> tuple[int, str]:
        process = start(arguments, **variables)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    return ran


@pytest.fixture
def small_fit(tiny_model) -> list[object]:
    """Arguments of a run of ten updates of a random model, two updates of two micro-batches to a rollout."""
    return [
        "fit",
        f"--config={CONFIG}",
        f"--model.model_name={tiny_model}",
        "--model.learning_rate=1e-3",
        "--data.reward=my_reward.length_reward",
        "--data.truncated=score",
        "--data.prompts_per_rollout=4",
        "--data.max_completion_length=12",
        "--data.validation.size=16",
        "--trainer.max_steps=10",
        "--trainer.accumulate_grad_batches=2",
        "--report.evaluate_every_n_steps=4",
        "--checkpoint.every_n_train_steps=3",
    ]
