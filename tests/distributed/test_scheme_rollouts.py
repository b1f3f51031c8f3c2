"""Sampling schemes in two processes: the same numbers on both ranks, and an exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.scheme_rollouts import STEPS

REPOSITORY = Path(__file__).parents[2]
STOP_AT = 5  # call of the engine, after the first checkpoint


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Folder of the runs with two processes."""
    folder = tmp_path_factory.mktemp("schemes")
    command = [sys.executable, "-m", "tests.distributed.scheme_rollouts", tiny_model, folder]
    command += ["--devices=2", f"--stop_at={STOP_AT}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def notes(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_have_the_same_metrics_and_prompts_of_their_own(runs):
    first, second = notes(runs / "undisturbed")
    assert first["metrics"] == second["metrics"]
    assert len(first["metrics"]) == STEPS
    assert {"curriculum/known", "drafts/best", "prompts/skipped"} <= first["metrics"][-1].keys()
    assert all(0.7 < metrics["tokens/trained_ratio"] < 0.9 for metrics in first["metrics"])
    assert any(metrics["replay/groups"] for metrics in first["metrics"])
    assert {metrics["rollout/staleness"] for metrics in first["metrics"]} <= {0, 1, 2, 3}
    assert any(metrics["prompts/skipped"] for metrics in first["metrics"])
    assert all(prompts != others for prompts, others in zip(first["sampled"], second["sampled"], strict=True))


def test_a_stop_within_a_rollout_changes_nothing(runs):
    undisturbed, resumed = (runs / name for name in ("undisturbed", "stopped"))
    ours, theirs = (load_file(folder / "parameters.safetensors") for folder in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for mine, other in zip(notes(resumed), notes(undisturbed), strict=True):
        assert 0 < len(mine["metrics"]) < STEPS
        for name in ("metrics", "trained", "sampled"):
            assert mine[name] == other[name][-len(mine[name]) :]
