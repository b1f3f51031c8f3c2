"""A step cut into ranks and micro-batches, in real processes, moves the parameters as one batch does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Parameters after three updates, by recipe, devices, micro-batches and the rank of adapters."""
    done: dict[tuple, dict[str, torch.Tensor]] = {}

    def train(recipe: str, devices: int = 1, accumulate: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
        key = (recipe, devices, accumulate, rank)
        if key not in done:
            output = tmp_path_factory.mktemp("trained") / "parameters.safetensors"
            command = [sys.executable, "-m", "tests.distributed.fixed_rollouts", tiny_model, output]
            command += [f"--recipe={recipe}", f"--devices={devices}", f"--accumulate={accumulate}", f"--rank={rank}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            result = subprocess.run(
                list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
            )
            assert result.returncode == 0, result.stdout + result.stderr
            done[key] = load_file(output)
        return done[key]

    return train


# The two normalisers that divide by different totals; a naive local mean is off by far more than the tolerance.
@pytest.mark.parametrize(("recipe", "devices", "accumulate"), [("gmpo", 2, 2), ("dapo", 2, 1), ("dapo", 1, 3)])
def test_same_parameters_however_the_step_is_cut(recipe, devices, accumulate, trained, tiny_model):
    whole, cut = trained(recipe), trained(recipe, devices, accumulate)
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).named_parameters())
    moved = max((whole[name] - start[name]).abs().max().item() for name in whole)
    apart = max((whole[name] - cut[name]).abs().max().item() for name in whole)
    assert moved > 1e-3
    # The model's own norms compute in float32 whatever the precision, which leaves this much between any two cuts.
    assert apart < 1e-8


def test_the_same_adapters_however_the_step_is_cut(trained):
    """Their factors differ by less than rounding, and the second one, which begins at zero, has moved."""
    whole, cut = trained("gmpo", rank=4), trained("gmpo", devices=2, accumulate=2, rank=4)
    assert whole.keys() == cut.keys()
    assert max(value.abs().max().item() for name, value in whole.items() if ".lora_B." in name) > 1e-3
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-8
