"""Errors before the first optimizer step are one message; the user's own code keeps its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lightning_modules.command_line import arguments, fit, rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


BEFORE_TRAINING = {
    "setup": (["--data.prompts_per_rollout=5"], "`prompts_per_rollout` is 5"),
    "prepare_data": (['--model.model_name={"class_path": "lightning_modules.addition.AdditionWarmStart"}'], "a_file"),
    "configure_model": (["--model.model_name=missing"], "cached files"),
    "adapters": (["--model.lora.rank=2", "--model.lora.target_modules=[nothing]"], "`target_modules`"),
    "optimizer": (["--model.optimizer=SGD", "--model.optimizer.lr=-1"], "Invalid learning rate"),
    "checkpoint": (["--ckpt_path=missing.ckpt"], "missing.ckpt"),
    "devices": (["--trainer.accelerator=cuda"], "CUDA"),
}


@pytest.mark.parametrize(("options", "message"), BEFORE_TRAINING.values(), ids=BEFORE_TRAINING.keys())
def test_an_error_before_the_first_step_is_one_message(model_folder, tmp_path, monkeypatch, options, message):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / "a_file"))
    with pytest.raises(SystemExit) as stop:
        fit(model_folder, tmp_path / "run", *options)
    assert str(stop.value.code).startswith("error: ")
    assert message in str(stop.value.code)


def test_an_error_of_the_users_own_reward_keeps_its_traceback(model_folder, tmp_path):
    (tmp_path / "my_module.py").write_text("def wrong_reward(completion, example): return int('x')\n")
    with pytest.raises(ValueError, match="invalid literal"):
        fit(model_folder, tmp_path / "run", "--data.reward=my_module.wrong_reward")


def test_a_reward_that_is_no_number_is_a_message(model_folder, tmp_path):
    with pytest.raises(SystemExit, match="return one finite number"):
        fit(model_folder, tmp_path / "run", "--data.reward=tests.lightning_modules.test_errors.endless")


def endless(completion, example):
    return float("inf")


def test_a_run_that_failed_before_its_first_step_does_not_block_its_folder(model_folder, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match="`prompts_per_rollout` is 5"):
        fit(model_folder, folder, "--data.prompts_per_rollout=5")
    with pytest.raises(SystemExit, match="return one finite number"):  # after the metrics were opened
        fit(
            model_folder,
            folder,
            "--data.reward=tests.lightning_modules.test_errors.endless",
            "--report.evaluate_before_training=false",
        )
    assert rows(folder) == []
    fit(model_folder, folder, "--trainer.max_steps=2")
    assert [row["step"] for row in rows(folder)] == ["0", "1", "2"]
    with pytest.raises(SystemExit, match="already holds a run"):
        fit(model_folder, folder)


def test_a_run_that_was_stopped_after_its_evaluation_does_not_block_its_folder(model_folder, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,val/pass@1_greedy\n0,0.5\n")
    fit(model_folder, folder, "--trainer.max_steps=1")
    assert [row["step"] for row in rows(folder)] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.prompts_per_rollout=6"], "`prompts_per_rollout` is 6"),
        (["--model.model_name=missing"], "cached files"),
        (["--data.reward=tests.lightning_modules.test_errors.endless"], "return one finite number"),
    ],
)
def test_an_error_in_two_processes_is_one_message(model_folder, tmp_path, options, message):
    several = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=1"]
    process = subprocess.run(
        [sys.executable, "-m", "lightning_modules", *arguments(model_folder, tmp_path / "run", *several, *options)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    output = process.stdout + process.stderr
    assert process.returncode not in (0, None), output
    assert "Traceback" not in output, output
    assert output.count("error: ") == 1, output
    assert message in output
