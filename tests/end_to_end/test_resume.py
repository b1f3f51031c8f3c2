"""A run that was stopped and resumed ends as one that was not: the same parameters and metrics, bit for bit."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def never_stopped() -> dict[str, Path]:
    """Run folders of undisturbed runs by objective, shared by the tests of this module."""
    return {}


def metrics(run_folder: Path) -> list[dict[str, str]]:
    """Return the rows of the metrics without timings."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_same_end(resumed: Path, undisturbed: Path) -> None:
    assert metrics(resumed) == metrics(undisturbed)
    assert [int(row["step"]) for row in metrics(resumed)] == list(range(11))
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (resumed, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def undisturbed(never_stopped, run, small_fit, tmp_path) -> Path:
    if "folder" not in never_stopped:
        folder = tmp_path / "undisturbed"
        status, output = run([*small_fit, f"--trainer.default_root_dir={folder}"])
        assert status == 0, output
        never_stopped["folder"] = folder
    return never_stopped["folder"]


def wait_for_rows(folder: Path, rows: int, process) -> None:
    """Wait until the metrics have this many rows, or the process has ended."""
    file = folder / "metrics.csv"
    while process.poll() is None:
        if file.exists() and len(file.read_text().splitlines()) > rows:
            return
        time.sleep(0.002)


# Steps after which the process is killed: within a rollout, at its end, right after a checkpoint, before any.
@pytest.mark.parametrize("rows", [3, 5, 8, 10])
def test_killed_and_resumed(rows, undisturbed, start, run, small_fit, tmp_path):
    folder = tmp_path / "killed"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    process = start(arguments)
    wait_for_rows(folder, rows, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    status, output = run(arguments)
    assert status == 0, output
    assert_same_end(folder, undisturbed)


@pytest.mark.parametrize("moment", ["the last step", "model", "samples.md"])
def test_killed_at_the_end_and_resumed(moment, undisturbed, start, run, small_fit, tmp_path):
    """What is missing after the last checkpoint is measured and written by the resume."""
    folder = tmp_path / "killed"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    process = start(arguments)
    wait_for_rows(folder, 11, process)
    while moment != "the last step" and process.poll() is None and not (folder / moment).exists():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    status, output = run(arguments)
    assert status == 0, output
    assert_same_end(folder, undisturbed)
    assert (folder / "samples.md").read_text() == (undisturbed / "samples.md").read_text()
    ours, theirs = (json.loads((one / "summary.json").read_text()) for one in (folder, undisturbed))
    assert {**ours, "tokens_per_second": 0} == {**theirs, "tokens_per_second": 0}
    assert (folder / "reward.png").exists()


def test_going_on_after_the_end(undisturbed, run, small_fit, tmp_path):
    """With more steps than the finished run had."""
    arguments = [*small_fit, f"--trainer.default_root_dir={tmp_path / 'longer'}"]
    for options in (["--trainer.max_steps=8"], ["--trainer.max_steps=10", "--ckpt_path=last"]):
        status, output = run([*arguments, *options])
        assert status == 0, output
    assert_same_end(tmp_path / "longer", undisturbed)


def test_time_limit_signal_and_resumed(undisturbed, start, run, small_fit, tmp_path):
    folder = tmp_path / "signalled"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--checkpoint.every_n_train_steps=1000"]
    process = start(arguments)
    wait_for_rows(folder, 3, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert "resume with `ckpt_path=last`" in output
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "model").exists()
    assert int(metrics(folder)[-1]["step"]) < 10
    status, output = run([*arguments, "--ckpt_path=last"])
    assert status == 0, output
    assert_same_end(folder, undisturbed)


def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(run, small_fit, tmp_path):
    """By its name and without a traceback; the one before it resumes, and is there to be named."""
    folder = tmp_path / "damaged"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--trainer.max_steps=4"]
    status, output = run(arguments)
    assert status == 0, output
    checkpoints = folder / "checkpoints"
    content = bytearray((checkpoints / "step-4.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoints / "step-4.ckpt").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")  # of no model that could be loaded
    for path in ("last", checkpoints / "step-4.ckpt"):
        status, output = run([*arguments, f"--ckpt_path={path}", f"--model.model_name={tmp_path}"])
        assert status == 1
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "it is damaged: step-4.ckpt has another checksum" in line
        assert f"with `--ckpt_path {checkpoints / 'step-3.ckpt'}`" in line
    status, output = run([*arguments, f"--ckpt_path={checkpoints / 'step-3.ckpt'}"])
    assert status == 0, output
    assert [int(row["step"]) for row in metrics(folder)] == list(range(5))


def test_a_changed_configuration_is_refused_or_applied(run, small_fit, tmp_path):
    """With the options' names and without a traceback; what is applied is in force, and the first file is kept."""
    folder = tmp_path / "changed"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--model.warmup_steps=0"]
    status, output = run([*arguments, "--trainer.max_steps=3"])
    assert status == 0, output
    first = (folder / "config.yaml").read_text()
    changed = [*arguments, "--trainer.max_steps=4", "--model.learning_rate=1e-5", "--model.objective.log_clip=0.3"]
    status, output = run([*changed, "--ckpt_path=last"])
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "`model.learning_rate` was 0.001 and is 1e-05" in line
    assert "`model.objective.log_clip` was 0.4 and is 0.3" in line
    assert "`--resume_with_changes`" in line
    assert "Traceback" not in output
    status, output = run([*changed, "--ckpt_path=last", "--resume_with_changes"])
    assert status == 0, output
    rates = [float(row["learning_rate"]) for row in metrics(folder)[1:]]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-5])
    assert (folder / "config.yaml").read_text() == first
    assert "learning_rate: 1.0e-05" in (folder / "config-2-from-step-3.yaml").read_text()
