"""Checkpoints under kills and signals: real ones."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.fabric.plugins import TorchCheckpointIO

from aggregate_po.recipes import gmpo
from lightning_modules import AtomicCheckpointIO, PolicyModule, RunCheckpoint
from tests.lightning_modules.training import copied, fitted, largest_difference, small_data

# Atomic writes

KILLED_IN_ITS_SECOND_SAVE = """
import resource, signal, sys, time
import torch
from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO

class Blocks:
    def __reduce__(self):
        print("saving", flush=True)
        time.sleep(60)

path, way = sys.argv[1:]
AtomicCheckpointIO().save_checkpoint({"step": 1, "weights": torch.arange(4.0)}, path)
second = {"step": 2, "weights": torch.zeros(500_000)}
if way == "in the middle of writing":  # the kernel ends the process at the first byte beyond the limit
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
else:
    second["last"] = Blocks()
AtomicCheckpointIO().save_checkpoint(second, path)
"""


def killed_while_saving(path, way):
    command = [sys.executable, "-c", KILLED_IN_ITS_SECOND_SAVE, str(path), way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if way == "while pickling":
            assert process.stdout.readline() == "saving\n"
            process.kill()
        return process.wait(timeout=300)
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize(
    ("way", "ended_by"), [("while pickling", signal.SIGKILL), ("in the middle of writing", signal.SIGXFSZ)]
)
def test_a_kill_during_a_save_leaves_the_last_checkpoint_whole(tmp_path, way, ended_by):
    path = tmp_path / "last.ckpt"
    assert killed_while_saving(path, way) == -ended_by
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["step"] == 1
    assert checkpoint["weights"].tolist() == [0, 1, 2, 3]
    left = [other for other in tmp_path.iterdir() if other != path]
    assert len(left) == 1  # what was written so far lies beside it, and the next save takes its place
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_makes_its_folder_and_takes_a_text(tmp_path):
    path = tmp_path / "new" / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, str(path))
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}


def test_a_stale_scratch_file_does_not_disturb(tmp_path):
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.part").write_bytes(b"x" * 100_000)
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="local object"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "function": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_remote_paths_are_left_to_lightning(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"step": 1}, "memory://folder/last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint("memory://folder/last.ckpt") == {"step": 1}
    assert not Path("memory:").exists()


# The checkpoint of a run


@pytest.mark.parametrize("name", ["USR1", "sigusr1", "", "SIG_IGN"])
def test_a_signal_must_have_a_name(name):
    with pytest.raises(
        ValueError, match=rf"`time_limit_signal` is '{name}'; pass the name of a signal, such as SIGUSR1"
    ):
        RunCheckpoint(time_limit_signal=name)


class Sends(Callback):
    """Sends this process a signal in the middle of the backward pass of a micro-batch."""

    def __init__(self, number, name="SIGUSR1"):
        self.number, self.name, self.backward_passes = number, name, 0
        self.received_before_end = None

    def on_before_backward(self, trainer, pl_module, loss):
        self.backward_passes += 1
        if self.backward_passes == self.number:
            os.kill(os.getpid(), signal.Signals[self.name])


@pytest.fixture
def previous_handler():
    """A handler that was there before, which must be there again afterwards."""
    calls = []

    def handler(number, frame):
        calls.append(number)

    handler.calls = calls
    before = signal.signal(signal.SIGUSR1, handler)
    yield handler
    signal.signal(signal.SIGUSR1, before)


def run(folder, model_folder, *callbacks, max_steps=6, ckpt_path=None, **options):
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, warmup_steps=2)
    checkpoint = RunCheckpoint(str(folder / "checkpoints"), **options)
    return fitted(
        folder,
        model_folder,
        data=small_data(updates_per_rollout=2),
        module=module,
        ckpt_path=ckpt_path,
        max_steps=max_steps,
        accumulate_grad_batches=2,
        enable_checkpointing=True,
        callbacks=[checkpoint, *callbacks],
        plugins=[AtomicCheckpointIO()],
    )


@pytest.mark.parametrize("backward_pass", [5, 6])
def test_a_run_that_is_out_of_time_finishes_its_step_and_stops(tmp_path, model_folder, previous_handler, backward_pass):
    """The fifth backward pass is the first half of the third step, the sixth its second half."""
    sends = Sends(backward_pass)
    stopped = run(tmp_path, model_folder, sends)
    assert stopped.trainer.global_step == 3
    assert sends.backward_passes == 6
    assert previous_handler.calls == []
    assert signal.getsignal(signal.SIGUSR1) is previous_handler
    names = ["last.ckpt", "step-3.ckpt", "step-3.ckpt.sha256"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 3
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    parameters = copied(stopped.module.model)
    assert largest_difference({name: weights[name] for name in parameters}, parameters) == 0


def test_a_run_that_resumes_ends_where_it_would_have(tmp_path, model_folder, previous_handler):
    """Bit for bit, though it stopped in the middle of a rollout."""
    undisturbed = run(tmp_path / "undisturbed", model_folder)
    assert run(tmp_path / "interrupted", model_folder, Sends(5)).trainer.global_step == 3
    resumed = run(tmp_path / "interrupted", model_folder, ckpt_path="last")
    assert resumed.trainer.global_step == 6
    assert largest_difference(copied(resumed.module.model), copied(undisturbed.module.model)) == 0
    state, expected = (one.trainer.optimizers[0].state_dict()["state"] for one in (resumed, undisturbed))
    assert all(torch.equal(state[k]["exp_avg_sq"], expected[k]["exp_avg_sq"]) for k in expected)
    for name in ("reward", "entropy", "learning_rate", "grad_norm"):
        assert resumed.metrics[name] == undisturbed.metrics[name]


def test_another_signal_may_be_chosen(tmp_path, model_folder, previous_handler):
    before = signal.getsignal(signal.SIGUSR2)
    stopped = run(tmp_path, model_folder, Sends(3, "SIGUSR2"), time_limit_signal="SIGUSR2")
    assert stopped.trainer.global_step == 2
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_run_that_fails_stops_listening(tmp_path, model_folder, previous_handler):
    class Failure(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, model_folder, Failure())
    assert signal.getsignal(signal.SIGUSR1) is previous_handler


def test_a_resumed_run_saves_after_whole_steps_only(tmp_path, model_folder, previous_handler):
    """The run resumes at a step of the schedule, and its next micro-batch does not complete another step."""
    run(tmp_path, model_folder, max_steps=2, every_n_train_steps=2)
    saved = []

    class Looks(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            saved.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.ready % 2))

    run(tmp_path, model_folder, Looks(), max_steps=4, every_n_train_steps=2, ckpt_path="last")
    assert saved == [(4, 0)]


class Shards(Callback):
    """Stands for a strategy whose ranks each write a part of a checkpoint; notes which one is the last meanwhile."""

    def __init__(self, fails_at=None):
        self.fails_at, self.seen = fails_at, []

    def on_fit_start(self, trainer, pl_module):
        trainer.strategy._save_distributed_checkpoint = True
        trainer.strategy.save_checkpoint = self.save

    def save(self, checkpoint, path, storage_options=None):
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step").write_text("0")  # the beginning of a write
        last = folder.with_name("last.ckpt") / "step"
        self.seen.append(int(last.read_text()) if last.exists() else 0)
        if checkpoint["global_step"] == self.fails_at:
            raise OSError("disk full")
        (folder / "step").write_text(str(checkpoint["global_step"]))


def test_a_folder_of_shards_takes_the_place_of_the_last_one_when_it_is_whole(tmp_path, model_folder, previous_handler):
    shards = Shards()
    run(tmp_path, model_folder, shards, max_steps=4, every_n_train_steps=1)
    assert shards.seen == [0, 1, 2, 3]
    folder = tmp_path / "checkpoints"
    assert (folder / "last.ckpt" / "step").read_text() == "4"
    assert (folder / "step-3.ckpt" / "step").read_text() == "3"
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 3


def test_a_save_of_shards_that_fails_leaves_the_last_one(tmp_path, model_folder, previous_handler):
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            run(tmp_path, model_folder, Shards(fails_at=3), max_steps=4, every_n_train_steps=1)
        assert (tmp_path / "checkpoints" / "last.ckpt" / "step").read_text() == "2"


def test_a_folder_that_another_callback_wrote_is_replaced(tmp_path, model_folder, previous_handler):
    (tmp_path / "checkpoints" / "last.ckpt").mkdir(parents=True)
    run(tmp_path, model_folder, Shards(), max_steps=1)
    assert (tmp_path / "checkpoints" / "last.ckpt" / "step").read_text() == "1"


def test_checkpoints_come_on_schedule(tmp_path, model_folder, previous_handler):
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            path = tmp_path / "checkpoints" / "last.ckpt"
            saved = torch.load(path, weights_only=True)["global_step"] if path.exists() else 0
            seen.append((trainer.global_step, saved))

    run(tmp_path, model_folder, Looks(), max_steps=5, every_n_train_steps=2)
    assert sorted(set(seen)) == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")) == [
        "last.ckpt",
        "step-4.ckpt",
        "step-5.ckpt",
    ]
    # The last step is saved although it is not on the schedule.
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


# Under SLURM


def fake_scontrol(folder, monkeypatch, script):
    """A program of that name, first on the path, that notes how it was called."""
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_under_slurm_the_job_is_queued_again(tmp_path, model_folder, monkeypatch, previous_handler):
    fake_scontrol(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*queued again")
        assert run(tmp_path, model_folder, Sends(3)).trainer.global_step == 2
    assert calls(tmp_path) == ["requeue 4711"]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_job_that_cannot_be_queued_again_is_a_warning(tmp_path, model_folder, monkeypatch, previous_handler):
    fake_scontrol(tmp_path, monkeypatch, "echo 'no such job' >&2; exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.warns(match="SLURM job 4711 could not be requeued: no such job"):
        assert run(tmp_path, model_folder, Sends(3)).trainer.global_step == 2
    assert calls(tmp_path) == ["requeue 4711"]


def test_a_failure_without_a_word_is_a_warning_too(tmp_path, model_folder, monkeypatch, previous_handler):
    fake_scontrol(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.warns(match="SLURM job 4711 could not be requeued"):
        run(tmp_path, model_folder, Sends(3))


def test_a_machine_without_scontrol_is_a_warning(tmp_path, model_folder, monkeypatch, previous_handler):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.warns(match="SLURM job 4711 could not be requeued: .*scontrol"):
        assert run(tmp_path, model_folder, Sends(3)).trainer.global_step == 2


@pytest.mark.parametrize("case", ["no job", "no signal"])
def test_otherwise_nothing_is_queued(tmp_path, model_folder, monkeypatch, previous_handler, case):
    fake_scontrol(tmp_path, monkeypatch, "exit 0")
    if case == "no job":
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        run(tmp_path, model_folder, Sends(3))
    else:
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        run(tmp_path, model_folder, max_steps=2)
    assert calls(tmp_path) == []


def test_a_folder_of_shards_is_refused_where_nothing_is_sharded(tmp_path, model_folder):
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"`ckpt_path` is '.*last.ckpt', a folder of shards; resume it under ModelPar"):
        fitted(tmp_path, model_folder, ckpt_path=tmp_path / "last.ckpt", plugins=[AtomicCheckpointIO()])


# Damaged checkpoints


def test_the_last_one_is_checked_before_it_is_loaded(tmp_path, model_folder, previous_handler):
    """And a run that goes on from the one before it ends where it would have."""
    run(tmp_path, model_folder, max_steps=4, every_n_train_steps=3)
    folder = tmp_path / "checkpoints"
    content = bytearray((folder / "step-4.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "step-4.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt': it is damaged: .*; resume .*`--ckpt_path .*/step-3.ckpt`"):
        run(tmp_path, model_folder, ckpt_path="last")
    with pytest.raises(ValueError, match=r"step-4.ckpt': it is damaged: .*; resume .*`--ckpt_path .*/step-3.ckpt`"):
        run(tmp_path, model_folder, ckpt_path=folder / "step-4.ckpt")
    resumed = run(tmp_path, model_folder, max_steps=4, ckpt_path=folder / "step-3.ckpt")
    undisturbed = run(tmp_path / "undisturbed", model_folder, max_steps=4)
    assert largest_difference(copied(resumed.module.model), copied(undisturbed.module.model)) == 0
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["last.ckpt", "step-3.ckpt", "step-4.2.ckpt"]


def test_a_missing_last_one_does_not_start_the_run_anew(tmp_path, model_folder, previous_handler):
    run(tmp_path, model_folder, max_steps=2, every_n_train_steps=1)
    (tmp_path / "checkpoints" / "step-2.ckpt").unlink()
    with pytest.raises(ValueError, match=r"it links to step-2.ckpt, which is missing; resume .*/step-1.ckpt`"):
        run(tmp_path, model_folder, ckpt_path="last")


def test_the_checkpoint_of_another_plugin_is_left_to_it(tmp_path, model_folder, previous_handler):
    """It may write later, or elsewhere."""
    fitted(
        tmp_path,
        model_folder,
        enable_checkpointing=True,
        callbacks=[RunCheckpoint(str(tmp_path / "checkpoints"))],
        plugins=[TorchCheckpointIO()],
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("keep_last", [0, -1])
def test_at_least_one_checkpoint_is_kept(keep_last):
    with pytest.raises(ValueError, match=f"`keep_last` is {keep_last}; pass 1 or more"):
        RunCheckpoint(keep_last=keep_last)
