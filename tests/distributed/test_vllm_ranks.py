"""A vLLM engine on each of two ranks, and one that both share: rollouts are on-policy, and each rank has its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.addition.warm_start import make_model, make_tokenizer
from tests.peers import require_peers

require_peers("vllm")
pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """Folder of the smallest model whose heads vLLM's attention on the CPU takes."""
    folder, tokenizer = tmp_path_factory.mktemp("small_model"), make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_model(tokenizer, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(small_model, tmp_path_factory):
    """Return the records of the ranks by strategy; with `sharded` they also share one engine."""
    done: dict[str, list[dict]] = {}

    def train(strategy: str) -> list[dict]:
        if strategy not in done:
            output = tmp_path_factory.mktemp(strategy)
            command = [sys.executable, "-m", "tests.distributed.vllm_rollouts", small_model, output]
            command += [f"--strategy={strategy}", f"--tensor-parallel-size={2 if strategy == 'sharded' else 1}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            # Nothing closes the engines, so this also shows that the processes end by themselves.
            result = subprocess.run(
                list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
            )
            assert result.returncode == 0, result.stdout + result.stderr
            assert "Traceback" not in result.stderr
            done[strategy] = [json.loads((output / f"{rank}.json").read_text()) for rank in (0, 1)]
        return done[strategy]

    return train


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_rollouts_are_on_policy_on_each_rank(strategy, trained):
    for noted in trained(strategy):
        assert noted["group"] == 2
        assert noted["sharded"] == (strategy == "sharded")
        assert len(noted["deviations"]) == 3
        assert max(noted["deviations"]) < 1e-4


def test_ranks_sample_by_themselves(trained):
    first, second = (noted["first_tokens"] for noted in trained("ddp"))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_shared_engine_samples_what_two_engines_sample(trained):
    apart, shared = ([noted["first_tokens"] for noted in trained(strategy)] for strategy in ("ddp", "sharded"))
    assert shared == apart
