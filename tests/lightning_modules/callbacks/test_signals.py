"""SIGTERM and the time-limit signal at every moment of a run, in this process."""

import contextlib
import os
import signal

import pytest
import torch
from lightning import Callback

from tests.lightning_modules.callbacks.test_checkpoints import calls, fake_scontrol, run

BEFORE = ["on_fit_start", "on_train_start"]
DURING = [
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_save_checkpoint",
    "on_train_epoch_end",
    "on_train_end",
]
AFTER = ["on_fit_end", "teardown"]
SIGNALS = ["SIGTERM", "SIGUSR1"]


class SendsAt(Callback):
    """Sends this process a signal at the first call of a hook in a step."""

    def __init__(self, hook, name, step=0):
        self.sent = False

        def send(trainer, *arguments, **named):
            if not self.sent and trainer.global_step >= step:
                self.sent = True
                os.kill(os.getpid(), signal.Signals[name])

        setattr(self, hook, send)


@pytest.fixture(autouse=True)
def same_handlers_afterwards():
    """Handlers that count, so that a signal that is not handled ends no test; they must be there again afterwards."""
    missed = []

    def handler(number, frame):
        missed.append(number)

    before = {name: signal.signal(signal.Signals[name], handler) for name in SIGNALS}
    ctrl_c = signal.getsignal(signal.SIGINT)  # Lightning ignores it from an interruption on
    yield
    after = [signal.getsignal(signal.Signals[name]) for name in SIGNALS]
    for name, previous in before.items():
        signal.signal(signal.Signals[name], previous)
    signal.signal(signal.SIGINT, ctrl_c)
    assert after == [handler] * 2
    assert missed == []


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake_scontrol(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")


def saved_step(folder):
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=False)["global_step"] if path.exists() else None


@pytest.mark.parametrize("hook", BEFORE)
@pytest.mark.parametrize("name", SIGNALS)
def test_before_the_training_there_is_nothing_to_save(tmp_path, model_folder, slurm, caplog, hook, name):
    with pytest.raises(SystemExit) as ended, caplog.at_level("INFO"):
        run(tmp_path, model_folder, SendsAt(hook, name))
    assert ended.value.code == 1
    assert saved_step(tmp_path) is None
    assert f"{name}: stopped; resume with `--ckpt_path last`. Nothing was saved yet" in caplog.text
    assert calls(tmp_path) == []  # a job that never gets further would be queued forever


@pytest.mark.parametrize("hook", BEFORE)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_resumed_run_that_has_not_begun_is_queued_at_its_time_limit(
    tmp_path, model_folder, slurm, caplog, hook, name
):
    run(tmp_path, model_folder, max_steps=2)
    with pytest.raises(SystemExit) as ended, caplog.at_level("INFO"):
        run(tmp_path, model_folder, SendsAt(hook, name), ckpt_path="last")
    assert ended.value.code == 1
    assert saved_step(tmp_path) == 2
    assert f"{name}: stopped; resume with `--ckpt_path last`. Nothing was saved since" in caplog.text
    assert calls(tmp_path) == (["requeue 4711"] if name == "SIGUSR1" else [])


@pytest.mark.parametrize("hook", DURING)
@pytest.mark.parametrize("name", SIGNALS)
def test_during_the_training_the_step_is_finished_and_saved(tmp_path, model_folder, slurm, caplog, hook, name):
    step = 4 if hook == "on_train_end" else 1
    arguments = {"max_steps": 4, "every_n_train_steps": 2}
    with caplog.at_level("INFO"):
        if name == "SIGTERM":
            with pytest.raises(SystemExit) as ended:
                run(tmp_path, model_folder, SendsAt(hook, name, step), **arguments)
            assert ended.value.code == 128 + signal.SIGTERM
        else:
            run(tmp_path, model_folder, SendsAt(hook, name, step), **arguments)
    saved = saved_step(tmp_path)
    assert step <= saved <= min(step + 2, 4)
    assert f"{name}: saved step {saved}; resume with `ckpt_path=last`." in caplog.text
    assert calls(tmp_path) == (["requeue 4711"] if name == "SIGUSR1" else [])
    steps = [path.name for path in (tmp_path / "checkpoints").glob("step-*.ckpt")]
    assert len(steps) == len({name.split(".")[0] for name in steps})  # no step is saved twice


@pytest.mark.parametrize("hook", AFTER)
@pytest.mark.parametrize("name", SIGNALS)
def test_after_the_last_checkpoint_a_run_ends_at_once(tmp_path, model_folder, slurm, caplog, hook, name):
    with pytest.raises(SystemExit) as ended, caplog.at_level("INFO"):
        run(tmp_path, model_folder, SendsAt(hook, name), max_steps=2)
    assert ended.value.code == 1
    assert saved_step(tmp_path) == 2
    assert f"{name}: stopped; resume with `--ckpt_path last`." in caplog.text
    assert calls(tmp_path) == (["requeue 4711"] if name == "SIGUSR1" else [])


def test_sigterm_requeues_a_job_only_as_its_time_limit_signal(tmp_path, model_folder, slurm):
    """It is the signal of `scancel`, too, after which the job must not come back."""
    run(tmp_path, model_folder, SendsAt("on_before_backward", "SIGTERM"), time_limit_signal="SIGTERM")
    assert calls(tmp_path) == ["requeue 4711"]
    assert saved_step(tmp_path) == 1


def test_the_time_limit_counts_when_sigterm_comes_too(tmp_path, model_folder, slurm):
    both = SendsAt("on_train_batch_start", "SIGTERM"), SendsAt("on_before_backward", "SIGUSR1")
    run(tmp_path, model_folder, *both)
    assert calls(tmp_path) == ["requeue 4711"]


def test_an_interruption_that_something_catches_is_raised_again(tmp_path, model_folder):
    class Catches(Callback):
        def on_fit_start(self, trainer, pl_module):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run(tmp_path, model_folder, Catches())
    assert ended.value.code == 1
    assert saved_step(tmp_path) is None
