"""A pipeline of diffusers in two processes, which are one."""

import csv
import json
from pathlib import Path

import pytest

from tests.docs.test_diffusers import CONFIG, SHORT
from tests.lightning_modules.flow.pipelines import save_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
# One rollout, since the size of a file jumps with rounding, and a clip range that rounding does not cross.
OPTIONS = {**SHORT, "data.prompts_per_rollout": 4, "data.group_size": 4}
OPTIONS |= {"model.objective.clip_low": 0.2, "model.objective.clip_high": 0.2}


def test_adapters_are_trained_in_two_processes_as_in_one(run, tmp_path):
    """Every adapter has a gradient, which DDP requires."""
    save_pipeline(tmp_path / "tiny")
    for name, count in (("train", 4), ("test", 3)):
        rows = [json.dumps({"prompt": f"{number} dogs"}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    found = []
    for processes in (1, 2):
        options = {
            **OPTIONS,
            "model.model.path": tmp_path / "tiny",
            "trainer.devices": processes,
            "trainer.strategy": "ddp" if processes > 1 else "auto",
            "trainer.default_root_dir": tmp_path / str(processes),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        status, output = run(["flow", "fit", f"--config={CONFIG}", *arguments])
        assert status == 0, output
        with (Path(tmp_path) / str(processes) / "metrics.csv").open(newline="") as file:
            found.append(list(csv.DictReader(file)))
    for one, two in zip(*found, strict=True):
        for name in ("reward", "reward_std", "grad_norm", "steps/02/divergence", "val/reward_ode"):
            assert bool(two[name]) == bool(one[name])
            assert float(two[name] or 0) == pytest.approx(float(one[name] or 0), rel=1e-3, abs=1e-9), name
    assert float(found[0][-1]["grad_norm"]) > 0
