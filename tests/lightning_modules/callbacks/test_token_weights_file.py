"""Files of token weights: which steps have one, what it holds, resume, size bound, and what is refused."""

import importlib.util

import pytest
import torch

from aggregate_po.recipes import gmpo
from lightning_modules import (
    CompletionsFile,
    MicroBatchObserver,
    RatioDeviationStop,
    TokenWeightsFile,
    read_completions,
    read_token_rows,
)
from lightning_modules.token_rows import token_files
from tests.lightning_modules.command_line import fit, rows
from tests.lightning_modules.training import BatchRecorder, fitted, small_data

pytest.importorskip("pyarrow")


class Seen(MicroBatchObserver):
    """Keeps the micro-batches, each with its optimizer step."""

    def __init__(self):
        self.seen = []

    def on_micro_batch(self, trainer, micro_batch):
        self.seen.append((trainer.global_step + 1, micro_batch))


def test_observers_see_what_the_training_step_computed(tmp_path, model_folder):
    observer, recorder = Seen(), BatchRecorder()
    fitted(tmp_path, model_folder, callbacks=[recorder, observer], accumulate_grad_batches=2, max_steps=2)
    assert [step for step, _ in observer.seen] == [1, 1, 2, 2]
    for (_, one), batch in zip(observer.seen, recorder.batches, strict=True):
        assert one.batch is batch
        evaluated = gmpo().evaluate(one.log_probs, batch.policy)
        assert torch.equal(one.evaluated.value, evaluated.value)
        assert torch.equal(one.evaluated.weights.total, evaluated.weights.total)
        assert one.entropy[batch.completion_mask].min() > 0
        assert not any(tensor.requires_grad for tensor in (one.log_probs, one.entropy, one.evaluated.value))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder):
    """Two rollouts of two updates, each of them two micro-batches, passed over twice."""
    folder, observer = tmp_path_factory.mktemp("trained"), Seen()
    data = small_data(updates_per_rollout=2, epochs_per_rollout=2)
    callbacks = [observer, CompletionsFile(), TokenWeightsFile(every_n_steps=1)]
    fitted(folder, model_folder, data=data, callbacks=callbacks, accumulate_grad_batches=2, max_steps=8)
    return folder, observer.seen


def test_the_rows_of_a_step_are_those_of_its_micro_batches(trained):
    folder, seen = trained
    assert [*token_files(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
    for step in range(1, 9):
        found = read_token_rows(folder, step)
        numbers = [(row["group"], row["sample"]) for row in found]
        assert numbers == sorted(numbers)
        by_completion = {(row["group"], row["sample"]): row for row in found}
        assert len(by_completion) == len(found)
        counted = 0
        for one in (one for own, one in seen if own == step):
            weights = one.evaluated.weights.total
            for number in one.batch.policy.response_mask.any(dim=-1).nonzero().flatten().tolist():
                length = int(one.batch.completion_mask[number].sum())
                row = by_completion[int(one.batch.policy.groups[number]), int(one.batch.samples[number])]
                assert row["weights"] == weights[number, :length].tolist()
                assert row["log_probs"] == one.log_probs[number, :length].tolist()
                counted += 1
        assert counted == len(found) > 0


def test_rows_are_of_the_completions_that_their_numbers_say(trained):
    folder, _ = trained
    for first in (1, 5):
        completions = {(row["group"], row["sample"]): row for row in read_completions(folder, step=first)}
        seen = {}
        for step in range(first, first + 4):
            for row in read_token_rows(folder, step):
                key = (row["group"], row["sample"])
                same = completions[key]
                # The text of a completion is without the token that ended it, which may end a character.
                assert row["completion"].startswith(same["completion"].rstrip("\N{REPLACEMENT CHARACTER}"))
                assert (row["reward"], len(row["tokens"])) == (same["reward"], same["length"])
                assert row["advantage"] == pytest.approx(same["advantage"])
                assert same["prompt"] in row["prompt"]
                seen[key] = seen.get(key, 0) + 1
        assert set(seen.values()) == {2}  # once in each epoch
        assert {completions[key]["advantage"] == 0 for key in completions.keys() - seen.keys()} <= {True}


def test_by_default_the_last_step_of_each_rollout_has_a_file(tmp_path, model_folder, trained):
    data = small_data(updates_per_rollout=2, epochs_per_rollout=2)
    options = {"accumulate_grad_batches": 2, "max_steps": 8}
    run = fitted(tmp_path, model_folder, data=data, callbacks=[TokenWeightsFile()], **options)
    assert [*token_files(tmp_path)] == [4, 8]
    assert read_token_rows(tmp_path, 8)[0].keys() == read_token_rows(trained[0], 8)[0].keys()
    assert run.metrics["tokens/removed_files"] == 0


def test_a_rollout_that_is_ended_early_has_no_last_step(tmp_path, model_folder):
    data = small_data(epochs_per_rollout=2)
    callbacks = [RatioDeviationStop(1e-9), TokenWeightsFile(), TokenWeightsFile(every_n_steps=2)]
    fitted(tmp_path, model_folder, data=data, callbacks=callbacks[:2], max_steps=2)
    assert [*token_files(tmp_path)] == []
    fitted(tmp_path, model_folder, data=data, callbacks=callbacks[::2], max_steps=5)
    assert [*token_files(tmp_path)] == [2, 4]


def test_a_resumed_run_has_each_file_once(tmp_path, model_folder):
    options = ["--trainer.callbacks+=lightning_modules.TokenWeightsFile", "--data.epochs_per_rollout=2"]
    options += ["--trainer.max_steps=8", "--checkpoint.every_n_train_steps=1", "--checkpoint.keep_last=9"]
    folder = tmp_path / "whole"
    fit(model_folder, folder, *options)
    whole = read_token_rows(folder)
    assert [*token_files(folder)] == [4, 8]
    assert "tokens/removed_files" in rows(folder)[-1]
    # As if the run had been killed later, within a rollout or at its end.
    for step in (3, 6):
        (folder / "tokens" / "step-000007.parquet").write_bytes(b"left over")
        fit(model_folder, folder, *options, f"--ckpt_path={folder}/checkpoints/step-{step}.ckpt")
        assert [*token_files(folder)] == [4, 8]
        assert read_token_rows(folder) == whole


def test_the_oldest_files_are_removed_beyond_the_bound(tmp_path, model_folder):
    run = fitted(tmp_path, model_folder, callbacks=[TokenWeightsFile(max_gigabytes=0)], max_steps=3)
    assert [*token_files(tmp_path)] == [3]  # the newest stays
    assert run.metrics["tokens/removed_files"] == 2


def test_a_step_without_trained_completions_has_an_empty_file(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0)
    fitted(tmp_path, model_folder, data=data, callbacks=[TokenWeightsFile()])
    assert read_token_rows(tmp_path, step=1) == []


def test_a_trial_writes_nothing(tmp_path, model_folder):
    fitted(tmp_path, model_folder, callbacks=[TokenWeightsFile()], fast_dev_run=1)
    assert not (tmp_path / "tokens").exists()


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"`every_n_steps` is 0; pass 1 or more"):
        TokenWeightsFile(every_n_steps=0)
    with pytest.raises(ValueError, match=r"`max_gigabytes` is -1; pass 0 or more"):
        TokenWeightsFile(max_gigabytes=-1)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "lightning_modules.parquet_files.find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"TokenWeightsFile needs `pyarrow`.*, or leave it out of `trainer\.callb"):
        TokenWeightsFile()
