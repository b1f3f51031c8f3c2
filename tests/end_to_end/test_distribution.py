"""Command-line runs of two processes: complete ones, and ones that lose a process."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.end_to_end.test_resume import assert_same_end, metrics, wait_for_rows

STRATEGIES = {
    "ddp": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {}},
    "sharded": {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
    },
}

LONG = "--trainer.max_steps=1000"  # so that a run does not end before it is disturbed


@pytest.fixture(scope="module")
def never_killed() -> dict[str, Path]:
    """Run folders of undisturbed runs by strategy, shared by the tests of this module."""
    return {}


@pytest.fixture
def arguments(small_fit):
    """Return arguments of a run under a strategy; a copy of the policy serves as the reference."""

    def of(strategy: str, folder: Path) -> list[object]:
        chosen = f"--trainer.strategy={json.dumps(STRATEGIES[strategy])}"
        common = ["--trainer.devices=2", "--data.kl_in_reward=0.1", f"--trainer.default_root_dir={folder}"]
        return [*small_fit, *common, chosen]

    return of


@pytest.fixture
def undisturbed(never_killed, run, arguments, tmp_path):
    def folder_of(strategy: str) -> Path:
        if strategy not in never_killed:
            folder = tmp_path / strategy
            status, output = run(arguments(strategy, folder), OMP_NUM_THREADS="1")
            assert status == 0, output
            never_killed[strategy] = folder
        return never_killed[strategy]

    return folder_of


def child_of(process) -> int:
    """Return the process of rank 1, which rank 0 starts."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def test_a_sharded_run_does_what_a_replicated_one_does(undisturbed):
    replicated, sharded = undisturbed("ddp"), undisturbed("sharded")
    for ours, theirs in zip(metrics(sharded), metrics(replicated), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert (ours[name] == "") == (theirs[name] == "")
            if ours[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-3), name
    exported, expected = ({file.name for file in (folder / "model").iterdir()} for folder in (sharded, replicated))
    assert exported == expected
    model = AutoModelForCausalLM.from_pretrained(sharded / "model")
    assert type(model).__name__ == model.config.architectures[0] == "Qwen2ForCausalLM"
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (sharded, replicated))
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3


# The second rank is killed after the fourth step; the checkpoint is that of the third, within a rollout.
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_rank_ends_the_run_which_resumes(strategy, undisturbed, start, run, arguments, tmp_path):
    expected, folder = undisturbed(strategy), tmp_path / "killed"
    process = start([*arguments(strategy, folder), "--ckpt_path=last"], OMP_NUM_THREADS="1")
    wait_for_rows(folder, 5, process)
    os.kill(child_of(process), signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=300)
    assert time.monotonic() - killed < 20
    assert process.returncode != 0
    # Lightning looks after its children every five seconds, and may be the first to notice.
    assert "repeat the command with `--ckpt_path last`" in output or "terminated with code -9" in output
    assert not (folder / "model").exists()
    status, output = run([*arguments(strategy, folder), "--ckpt_path=last"], OMP_NUM_THREADS="1")
    assert status == 0, output
    assert "Restoring states from the checkpoint path" in output
    assert_same_end(folder, expected)


def test_the_others_end_with_the_first_rank(start, arguments, tmp_path):
    process = start([*arguments("ddp", tmp_path / "killed"), LONG], OMP_NUM_THREADS="1")
    wait_for_rows(tmp_path / "killed", 4, process)
    process.kill()
    # Until all have ended that hold its output.
    output, _ = process.communicate(timeout=60)
    assert "rank 1 of 2 waited for another rank, which has ended" in output


def test_a_rank_that_does_not_answer_ends_the_run_within_the_time_out(start, arguments, tmp_path):
    folder = tmp_path / "stopped"
    process = start([*arguments("ddp", folder), LONG, "--trainer.strategy.timeout=0:00:30"], OMP_NUM_THREADS="1")
    wait_for_rows(folder, 4, process)
    child = child_of(process)
    os.kill(child, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        assert process.wait(timeout=90) != 0
    finally:
        os.kill(child, signal.SIGKILL)
    assert 29 < time.monotonic() - stopped < 70
    assert "rank 0 of 2 waited for another rank" in process.communicate()[0]
