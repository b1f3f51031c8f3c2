"""A model whose layers are divided among two real processes computes what it does alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.divided_models import CONFIGS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    """What each of the two ranks has to say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.divided_models"],
            cwd=REPOSITORY,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), outputs
    return [json.loads(printed.strip().splitlines()[-1]) for printed, _ in outputs]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_the_whole_model(name, rank, found):
    assert found[rank]["models"][name]["apart"] < 1e-13


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_rank_has_a_part(name, rank, found):
    assert 0.5 < found[rank]["models"][name]["share"] < 0.75  # embeddings and norms are whole


def test_ranks_that_divide_a_model_draw_the_same_completions(found):
    assert found[0]["drawn"] == found[1]["drawn"]
    assert len(found[0]["drawn"]) == 6


def test_partners_agree_on_what_the_first_one_has(found):
    assert [one["agreed"] for one in found] == ["rank 0", "rank 0"]
