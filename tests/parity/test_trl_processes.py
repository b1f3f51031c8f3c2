"""Our objectives in TRL's trainer, in two processes over gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import require_peers

require_peers("trl")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ranks(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "tests.parity.trl_processes", str(tiny_model), str(folder)]
    done = subprocess.run([*launch, *script], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


def test_loss_and_gradient_equal_those_of_trl(ranks):
    for found in ranks:
        for pairs in found["differences"].values():
            assert len(pairs) == 4
            for loss, gradient in pairs:
                assert abs(loss) < 1e-6
                assert gradient < 5e-6


def test_the_mean_gradient_of_the_ranks_is_that_of_the_step(ranks):
    assert [len(found["errors"]) for found in ranks] == [2, 2]
    assert max(error for found in ranks for error in found["errors"]) < 5e-6


def test_ranks_agree(ranks):
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert len(ranks[0]["losses"]) == 2
