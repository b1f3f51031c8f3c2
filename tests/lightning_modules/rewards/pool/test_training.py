"""A pool as the reward of a training run: failures, the end of the run, a resume, and a run that is killed."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from aggregate_po.recipes import grpo
from lightning_modules import PolicyModule, RewardPool
from lightning_modules.callbacks.checkpoints import RunCheckpoint
from tests.lightning_modules.rewards.pool import hostile
from tests.lightning_modules.training import fitted, small_data

pytestmark = pytest.mark.filterwarnings("ignore:`reward` moody failed")


def run(folder, model_folder, steps, ckpt_path=None):
    pool = RewardPool(hostile.moody, workers=2, limit=30)
    data = small_data(reward=pool, updates_per_rollout=2)
    checkpoint = RunCheckpoint(str(folder / "checkpoints"), every_n_train_steps=1)
    module = PolicyModule(model_folder, grpo(), learning_rate=1e-2, warmup_steps=0, resume_with_changes=True)
    options = {"callbacks": [checkpoint], "enable_checkpointing": True, "max_steps": steps}
    finished = fitted(folder, model_folder, data=data, module=module, ckpt_path=ckpt_path, **options)
    assert pool._processes == []  # they end with the training
    return finished


def test_a_run_with_failing_verdicts_resumes_exactly(tmp_path, model_folder):
    complete = run(tmp_path / "complete", model_folder, 6)
    failed = [complete.metrics[f"rewards/moody/failed/{cause}"] for cause in ("exception", "exit")]
    assert 0 < sum(failed) == 16 * complete.metrics["completions/failed_ratio"] < 16
    of_rollout = [value for name, value in complete.metrics.items() if name.startswith(("reward", "completions/"))]
    assert all(map(math.isfinite, of_rollout))
    run(tmp_path / "stopped", model_folder, 3)  # in the middle of a rollout
    resumed = run(tmp_path / "stopped", model_folder, 6, tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    for name, value in complete.module.model.named_parameters():
        assert torch.equal(value, dict(resumed.module.model.named_parameters())[name])


@pytest.mark.slow
def test_no_worker_outlives_a_killed_run(tmp_path, model_folder):
    """The workers sleep in a verdict when the run is killed."""
    file, data = tmp_path / "processes", tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{number}", "file": str(file)}) + "\n" for number in range(4)))
    options = {
        "data.dataset": data,
        "data.reward": "lightning_modules.RewardPool",
        "data.reward.reward": "tests.lightning_modules.rewards.pool.hostile.moody",
        "data.reward.limit": 1000,
        "data.group_size": 2,
        "data.prompts_per_rollout": 4,
        "data.max_completion_length": 4,
        "model.model_name": model_folder,
        "model.objective": "aggregate_po.recipes.grpo",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 1,
        "trainer.default_root_dir": tmp_path / "run",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    root = Path(__file__).resolve().parents[4]
    process = subprocess.Popen([sys.executable, "-m", "lightning_modules", "fit", *arguments], cwd=root)
    try:
        deadline = time.monotonic() + 200
        while not (file.exists() and len(file.read_text().split()) == 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = [psutil.Process(int(pid)) for pid in file.read_text().split()]
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
