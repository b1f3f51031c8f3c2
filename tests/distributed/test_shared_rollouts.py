"""Statistics of a rollout are those of all ranks: two processes update the parameters as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.shared_rollouts import ESTIMATORS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Folder of the parameters after four updates, by number of processes."""
    folders = {}
    for devices in (1, 2):
        folders[devices] = tmp_path_factory.mktemp(f"devices_{devices}")
        command = [sys.executable, "-m", "tests.distributed.shared_rollouts", tiny_model, folders[devices]]
        command.append(f"--devices={devices}")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stdout + result.stderr
    return folders


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_and_weights_are_those_of_the_full_rollout(name, trained, tiny_model):
    alone, shared = (load_file(trained[devices] / f"{name}.safetensors") for devices in (1, 2))
    start = dict(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=next(iter(alone.values())).dtype).named_parameters()
    )
    moved = max((alone[key] - start[key]).abs().max().item() for key in alone)
    apart = max((alone[key] - shared[key]).abs().max().item() for key in alone)
    assert moved > 1e-3
    # The norm layers of the model compute in float32 in any precision, so any two splits differ by this much.
    assert apart < 1e-8
