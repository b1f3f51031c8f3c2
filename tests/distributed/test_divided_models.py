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


@pytest.fixture(scope="module", params=["0", "1"])
def found(request):
    """How far the divided models are apart from whole ones, as one of the ranks has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.divided_models", request.param],
            cwd=REPOSITORY,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), outputs
    return json.loads(outputs[int(request.param)][0].strip().splitlines()[-1])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_the_whole_model(name, found):
    assert found[name]["apart"] < 1e-13


@pytest.mark.parametrize("name", CONFIGS)
def test_each_rank_has_a_part(name, found):
    assert 0.5 < found[name]["share"] < 0.75  # embeddings and norms are whole
