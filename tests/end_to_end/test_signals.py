"""Signals to the command line at several moments: loading, training, the last evaluation."""

import os
import signal
import time

import pytest

from tests.end_to_end.test_resume import metrics, wait_for_rows


def wait_for_file(path, process):
    while process.poll() is None and not path.exists():
        time.sleep(0.002)


@pytest.fixture
def slurm(tmp_path):
    """Environment of a SLURM job with a `scontrol` that notes how it was called."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_the_model_is_loaded_ends_with_a_sentence(start, small_fit, tmp_path, slurm, name):
    folder = tmp_path / "run"
    process = start([*small_fit, f"--trainer.default_root_dir={folder}", "--data.validation.size=4000"], **slurm)
    wait_for_file(folder / "config.yaml", process)
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 128 + signal.Signals[name], output
    assert f"{name}: stopped; resume with `--ckpt_path last`. Nothing was saved yet" in output
    assert "Traceback" not in output
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_at_the_end_leaves_what_is_owed_to_a_resume(start, run, small_fit, tmp_path, slurm, name):
    folder = tmp_path / "run"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--trainer.max_steps=2", "--ckpt_path=last"]
    process = start([*arguments, "--data.validation.size=4000"], **slurm)
    wait_for_file(folder / "checkpoints" / "step-2.ckpt.sha256", process)
    time.sleep(1)
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 128 + signal.Signals[name], output
    assert f"{name}: stopped; resume with `--ckpt_path last`." in output
    assert (tmp_path / "calls").exists() == (name == "SIGUSR1")
    assert not (folder / "summary.json").exists()  # the evaluation comes after the export of the model


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("moment", ["loading", "training"])
def test_rank_zero_of_two_answers_for_both(start, small_fit, tmp_path, slurm, name, moment):
    folder = tmp_path / "run"
    options = ["--trainer.devices=2", "--trainer.max_steps=1000", "--checkpoint.every_n_train_steps=1000"]
    process = start([*small_fit, f"--trainer.default_root_dir={folder}", *options], OMP_NUM_THREADS="1", **slurm)
    if moment == "loading":
        wait_for_file(folder / "config.yaml", process)
    else:
        wait_for_rows(folder, 3, process)
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=900)  # until both have ended
    requeued = name == "SIGUSR1" and moment == "training"
    assert process.returncode == (0 if requeued else 128 + signal.Signals[name]), output
    assert (tmp_path / "calls").exists() == requeued
    assert f"{name}: {'stopped' if moment == 'loading' else 'saved step'}" in output
    assert (folder / "checkpoints" / "last.ckpt").exists() == (moment == "training")
    if moment == "training":
        assert int(metrics(folder)[-1]["step"]) >= 2
