"""Tensor parallelism on two real processes gives the logits and gradients of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.tensor_parallel_models import CONFIGS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    """Results of each of the two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.tensor_parallel_models"],
            cwd=REPOSITORY,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), outputs
    return [json.loads(printed.strip().splitlines()[-1]) for printed, _ in outputs]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_the_full_model(name, rank, found):
    assert found[rank]["models"][name]["apart"] < 1e-13


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_rank_has_a_part(name, rank, found):
    assert 0.5 < found[rank]["models"][name]["share"] < 0.75  # embeddings and norms are replicated


def test_tensor_parallel_ranks_generate_the_same_completions(found):
    assert found[0]["generated"] == found[1]["generated"]
    assert len(found[0]["generated"]) == 6


def test_a_tensor_parallel_group_receives_the_value_of_its_rank_0(found):
    assert [one["agreed"] for one in found] == ["rank 0", "rank 0"]
