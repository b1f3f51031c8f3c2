"""The bars on the terminal."""

import io
import sys

import pytest
from lightning import Callback

from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule
from lightning_modules.callbacks import progress
from lightning_modules.callbacks.progress import TrainingProgressBar
from lightning_modules.progress import progress_bar
from tests.lightning_modules.training import fitted, small_data


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is opened, with its number and its postfix at closing."""
    opened = []

    def recorded(**options):
        written = io.StringIO()
        bar = progress_bar(**{**options, "file": written})
        bar.written = written
        opened.append(bar)
        return bar

    monkeypatch.setattr(progress, "progress_bar", recorded)
    return opened


def run(tmp_path, model_folder, **options):
    return fitted(
        tmp_path,
        model_folder,
        data=options.pop("data", None) or small_data(updates_per_rollout=2),
        callbacks=[TrainingProgressBar(), *options.pop("callbacks", [])],
        enable_progress_bar=True,
        **options,
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_bars_end_with_the_run(tmp_path, model_folder, bars, accumulate):
    run(tmp_path, model_folder, max_steps=5, accumulate_grad_batches=accumulate)
    rollouts, updates = bars
    assert (updates.n, updates.total, updates.initial) == (5, 5, 0)
    assert "reward=" in updates.postfix
    assert "entropy=" in updates.postfix
    # Two updates to a rollout, so the third one is begun.
    assert (rollouts.n, rollouts.total, rollouts.initial) == (3, 3, 0)
    assert "reward=" in rollouts.postfix
    assert "length=" in rollouts.postfix
    for bar in bars:
        assert bar.written.getvalue().endswith("\n")  # closed, so what follows stands on a line of its own


def test_an_update_without_any_token_to_train_on_shows_no_entropy(tmp_path, model_folder, bars):
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3)
    module.configure_model()
    module.model.generation_config.eos_token_id = None  # nothing but the rare end of sequence finishes
    run(tmp_path, model_folder, module=module, data=small_data(max_completion_length=1, truncated="mask"))
    assert "reward=" in bars[1].postfix
    assert "entropy" not in bars[1].postfix


def test_a_resumed_run_opens_the_bar_where_it_stands(tmp_path, model_folder, bars):
    run(tmp_path, model_folder, max_steps=3).trainer.save_checkpoint(tmp_path / "three.ckpt")
    run(tmp_path, model_folder, max_steps=5, ckpt_path=tmp_path / "three.ckpt")
    rollouts, updates = bars[2:]
    assert (updates.n, updates.total, updates.initial) == (5, 5, 3)
    # It resumes within the second rollout and begins the third.
    assert (rollouts.n, rollouts.total, rollouts.initial) == (3, 3, 2)


def test_the_bar_is_closed_when_training_fails(tmp_path, model_folder, bars):
    class Failure(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, model_folder, max_steps=5, callbacks=[Failure()])
    assert all(bar.written.getvalue().endswith("\n") for bar in bars)


def test_a_disabled_bar_is_silent(tmp_path, model_folder, bars):
    bar = TrainingProgressBar()
    bar.disable()
    fitted(tmp_path, model_folder, callbacks=[bar], enable_progress_bar=True, max_steps=2)
    assert all(bar.disable and bar.written.getvalue() == "" for bar in bars)


def test_a_file_gets_a_line_twice_a_minute_and_a_terminal_two_a_second(monkeypatch):
    with progress_bar(total=1, file=io.StringIO()) as bar:
        assert bar.mininterval == 30.0

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=1) as bar:
        assert bar.mininterval == 0.5
