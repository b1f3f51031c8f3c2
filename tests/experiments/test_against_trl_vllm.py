"""The benchmark against TRL with vLLM as engine, shortened, and on this side: TRL's compiles for minutes at start."""

import json
import subprocess
import sys

import pytest
import torch

from lightning_modules.addition.warm_start import make_model, make_tokenizer
from tests.peers import ROOT, require_peers

require_peers("vllm")
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


def test_this_side(folder):
    sizes = ["--lengths", "4", "--updates", "2", "--rollouts", "2", "--engine", "vllm"]
    command = [sys.executable, "-m", "experiments.benchmarks.real_model_vs_trl", "--model", str(folder), *sizes]
    done = subprocess.run([*command, "--side", "here"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert min(result["phases"].values()) > 0
    assert 0 < result["tokens"] <= 4
