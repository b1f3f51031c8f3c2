"""Folders of recordings: what is written is read to the bit, and what is damaged is refused by name."""

import dataclasses
import json

import pytest
import torch

from aggregate_po import CorrectionWeights, StepTotals
from aggregate_po.recipes import gmpo, pmpo
from lightning_modules.recordings import Manifest, Recording
from lightning_modules.recordings.steps import RecordedStep
from lightning_modules.recordings.tensors import load_state, plain_state, save_state
from tests.lightning_modules.recordings.hand_made import recorded_batch, recorded_step, write

LOG_RATIOS, ADVANTAGES = [[0.5, -0.25, 0.125], [0.1]], [1.0, -2.0]


def equal(first, second):
    """Whether two nested states are equal to the bit, with equal types."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and (first == second or first != first)


def everything(objective):
    """A micro-batch in which every field has a value."""
    shape = (2, 3)
    correction = CorrectionWeights(torch.full(shape, 0.1), torch.ones(shape, dtype=torch.bool), torch.zeros(2))
    totals = StepTotals(torch.tensor(2.0), 4.0, 1 / 3, 0.1, torch.tensor(0.7))
    fields = {"mean_weights": torch.full(shape, 0.3), "span_ids": torch.zeros(shape, dtype=torch.long)}
    fields |= {"ref_log_probs": torch.full(shape, -0.7), "correction": correction}
    return recorded_batch(objective, LOG_RATIOS, ADVANTAGES, totals, **fields)


def test_a_step_is_read_as_it_was_written(tmp_path):
    step = RecordedStep(7, 2, 3, [everything(pmpo()), everything(pmpo())])
    step.save(tmp_path / "step.safetensors")
    read = RecordedStep.load(tmp_path / "step.safetensors")
    assert (read.step, read.rollout, read.update, len(read.batches)) == (7, 2, 3, 2)
    for first, second in zip(step.batches, read.batches, strict=True):
        assert equal(first.state_dict(), second.state_dict())
        assert torch.equal(first.evaluated.weights.total, second.evaluated.weights.total)


def test_micro_batches_keep_their_order(tmp_path):
    objective = gmpo()
    step = recorded_step(objective, *[([[number / 10]], [1.0]) for number in range(12)])
    step.save(tmp_path / "step.safetensors")
    read = RecordedStep.load(tmp_path / "step.safetensors")
    drifts = [float(part.log_probs - part.batch.policy.old_log_probs) for part in read.batches]
    assert drifts == pytest.approx([number / 10 for number in range(12)])


def test_floats_keep_all_digits(tmp_path):
    state = {"a": 1 / 3, "b": {"c": torch.tensor(0.1), "d": None, "e": "text"}, "f": float("nan")}
    save_state(state, tmp_path / "state")
    assert equal(load_state(tmp_path / "state"), state)


def test_views_are_stored_as_they_are(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    save_state({"a": whole[:, 1:], "b": whole.T}, tmp_path / "state")
    assert equal(load_state(tmp_path / "state"), {"a": whole[:, 1:], "b": whole.T})


def test_what_a_file_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"`a\.b` is"):
        save_state({"a": {"b": object()}}, tmp_path / "state")


def test_plain_states_are_dictionaries():
    totals = StepTotals(1, 2)
    assert plain_state([totals, (1, 2)])["0"] == dataclasses.asdict(totals)
    assert plain_state([totals, (1, 2)])["1"] == {"0": 1, "1": 2}


@pytest.fixture
def folder(tmp_path):
    objective = gmpo()
    steps = [recorded_step(objective, (LOG_RATIOS, ADVANTAGES), step=number, update=number) for number in (1, 2)]
    return write(tmp_path / "recording", objective, *steps)


def test_a_recording_has_its_steps_and_rows(folder):
    recording = Recording(folder)
    assert len(recording) == 2
    assert [step.update for step in recording] == [1, 2]
    assert recording.step(2).step == 2
    assert recording.completions == recording.tokens == [{"rollout": 1, "completion": "a"}]
    assert recording.manifest.rollouts == 1
    assert recording.manifest.versions["torch"] == torch.__version__
    assert recording.model_folder is None
    assert Manifest.read(folder) == recording.manifest


def test_a_missing_step_is_refused_with_those_there_are(folder):
    with pytest.raises(ValueError, match="`number` is 3; pass one of the recorded steps, 1, 2"):
        Recording(folder).step(3)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is no folder; pass one that `aggregate-po record`"):
        Recording(tmp_path / "nowhere")


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json, so it is no recording"):
        Recording(tmp_path)


@pytest.mark.parametrize("name", ["steps/step-000002.safetensors", "tokens.parquet", "config.yaml"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}, which its manifest names"):
        Recording(folder)


def test_a_missing_model_is_named(tmp_path):
    objective = gmpo()
    folder = write(tmp_path / "recording", objective, recorded_step(objective, (LOG_RATIOS, ADVANTAGES)), model_step=1)
    with pytest.raises(FileNotFoundError, match=r"lacks model/config\.json"):
        Recording(folder)


@pytest.mark.parametrize("name", ["steps/step-000001.safetensors", "tokens.parquet"])
def test_a_changed_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    recording = Recording(folder)
    with pytest.raises(ValueError, match="its checksum differs"):
        (list(recording), recording.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "{", "damaged"),
        (lambda content: "[]", "damaged"),
        (lambda content: json.dumps({**content, "version": 2}), "version 2, but this version of the library reads"),
        (lambda content: json.dumps({**content, "format": "other"}), "format 'other'"),
        (lambda content: json.dumps({"format": content["format"], "version": 1}), "damaged"),
        (lambda content: json.dumps({**content, "steps": [{"step": 1}]}), "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        Recording(folder)


def test_what_a_later_version_adds_to_the_manifest_is_ignored(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    assert len(Recording(folder)) == 2


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_file_that_holds_no_tensors_is_refused(tmp_path, content):
    (tmp_path / "step").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable file of a recording"):
        RecordedStep.load(tmp_path / "step")


def test_tensors_of_something_else_are_refused(tmp_path):
    save_state({"a": torch.ones(1)}, tmp_path / "state")
    with pytest.raises(ValueError, match="not an optimizer step of a recording"):
        RecordedStep.load(tmp_path / "state")
