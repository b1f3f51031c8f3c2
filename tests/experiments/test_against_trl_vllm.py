"""The benchmark against TRL with vLLM as engine, shortened and with a small model; a process has one engine."""

import json
import subprocess
import sys

import pytest
import torch

from lightning_modules.addition.warm_start import make_model, make_tokenizer
from tests.peers import ROOT, require_peers

require_peers("vllm")
require_peers("trl")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small model whose heads have a width that vLLM's attention for processors supports."""
    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(tokenizer, hidden_size=128, layers=1)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(side, folder):
    sizes = ["--lengths", "4", "--updates", "2", "--rollouts", "2", "--engine", "vllm"]
    command = [sys.executable, "-m", "experiments.benchmarks.real_model_vs_trl", "--model", str(folder), *sizes]
    return subprocess.run([*command, "--side", side], cwd=ROOT, capture_output=True, text=True, timeout=900)


def require_result(done):
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert min(result["phases"].values()) > 0
    assert 0 < result["tokens"] <= 4


def test_this_side(folder):
    require_result(run("here", folder))


def test_the_side_of_trl_runs_or_stops_at_weights_that_vllm_has_packed(folder):
    done = run("trl", folder)
    if done.returncode:  # where oneDNN multiplies in bfloat16, as docs/benchmarks.md says
        assert "AttributeError: 'Parameter' object has no attribute 'weight_loader'" in done.stderr
        return
    require_result(done)
