"""Recordings of training: they equal the training step to the bit, and the training goes on as without them."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("pyarrow")

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    K3Penalty,
    NestedMean,
    PolicyObjective,
    PositionWeights,
    SequenceCorrection,
    TokenCorrection,
)
from aggregate_po.advantages import WhitenedReturns
from aggregate_po.recipes import fipo, gmpo, grpo, pmpo, real
from lightning_modules import PolicyModule, Sentences
from lightning_modules.addition import AdditionProblems
from lightning_modules.callbacks.ratio_deviation import RatioDeviationStop
from lightning_modules.comparison import compare_objectives
from lightning_modules.comparison.evaluation import evaluated_step
from lightning_modules.recordings import Recording, RolloutRecorder
from tests.lightning_modules.training import (
    BatchRecorder,
    RecordingEngine,
    fitted,
    small_data,
    text_reward,
)

PENALIZED = PolicyObjective(GeometricMean(), penalties=[K3Penalty(0.1)])


def recorded(folder, model_folder, objective=None, rollouts=2, data=None, **options):
    """A recording of two updates to a rollout, of two micro-batches each, and the finished fit."""
    data = small_data(updates_per_rollout=2) if data is None else data
    recorder, noted = RolloutRecorder(folder / "recording", rollouts), BatchRecorder()
    options = {"accumulate_grad_batches": 2, "max_steps": 100, "callbacks": [recorder, noted]} | options
    fit = fitted(folder / "run", model_folder, objective, data, **options)
    return SimpleNamespace(**vars(fit), recording=Recording(folder / "recording"), noted=noted)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    return recorded(tmp_path_factory.mktemp("recorded"), model_folder)


def test_a_recording_has_the_steps_of_its_rollouts(run):
    manifest = run.recording.manifest
    assert [(entry.step, entry.rollout, entry.update) for entry in manifest.steps] == [
        (1, 1, 1),
        (2, 1, 2),
        (3, 2, 1),
        (4, 2, 2),
    ]
    assert (manifest.rollouts, manifest.model_step, manifest.every_completion) == (2, 4, False)
    assert manifest.objective == repr(gmpo())
    assert run.trainer.global_step == 4  # and no further


@pytest.mark.parametrize("objective", [gmpo(), pmpo(), PENALIZED, real()], ids=["gmpo", "pmpo", "kl", "real"])
def test_the_own_objective_gives_the_weights_of_the_training_step_to_the_bit(tmp_path, model_folder, objective):
    data = small_data(updates_per_rollout=2, epochs_per_rollout=2)
    run = recorded(tmp_path, model_folder, objective, rollouts=1, data=data)
    steps = list(run.recording)
    assert [(step.update, len(step.batches)) for step in steps] == [(number, 2) for number in (1, 2, 3, 4)]
    moved = steps[-1].batches[0]
    assert (moved.log_probs - moved.batch.policy.old_log_probs).abs().max() > 1e-3  # ratios are not 1
    for step in steps:
        for part, result in zip(step.batches, evaluated_step(objective, step), strict=True):
            assert torch.equal(result.weights.total, part.evaluated.weights.total)
            assert torch.equal(result.value, part.evaluated.value)
            assert torch.equal(result.weights.clipped, part.evaluated.weights.clipped)


def test_training_is_the_same_with_and_without_a_recorder(tmp_path, model_folder, run):
    noted = BatchRecorder()
    data = small_data(updates_per_rollout=2)
    fitted(tmp_path, model_folder, data=data, accumulate_grad_batches=2, max_steps=4, callbacks=[noted])
    assert len(noted.batches) == len(run.noted.batches) == 8
    recorded = [part.batch for step in run.recording for part in step.batches]
    for own, plain in zip(recorded, noted.batches, strict=True):
        assert torch.equal(own.completion_ids, plain.completion_ids)
        assert torch.equal(own.policy.advantages, plain.policy.advantages)
    for name, weight in noted.parameters[-1].items():
        assert torch.equal(weight, run.noted.parameters[-1][name])


def test_log_probs_of_all_three_policies(tmp_path, model_folder):
    data = small_data(updates_per_rollout=2, rollouts=RecordingEngine(shift=0.1), old_log_probs="trainer")
    run = recorded(tmp_path, model_folder, rollouts=1, data=data)
    sampled = data.rollouts.generated[0]
    for step in run.recording:
        for part in step.batches:
            rows = part.batch.policy.groups * 4 + part.batch.samples
            mask, time = part.batch.completion_mask, part.batch.completion_ids.shape[1]
            assert torch.equal(sampled.token_ids[rows, :time][mask], part.batch.completion_ids[mask])
            assert torch.equal(sampled.log_probs[rows, :time].where(mask, 0), part.rollout_log_probs)
            old = part.batch.policy.old_log_probs
            assert (old - part.rollout_log_probs)[mask].abs().max() > 1e-3
            if step.update == 1:
                torch.testing.assert_close(part.log_probs.where(mask, 0), old, atol=1e-4, rtol=0)


def test_rows_say_what_the_tensors_say(run):
    step = run.recording.step(4)
    rows = [row for row in run.recording.tokens if row["step"] == 4]
    assert {(row["rollout"], row["update"]) for row in rows} == {(2, 2)}
    assert len(rows) == sum(int(part.batch.policy.response_mask.any(dim=-1).sum()) for part in step.batches)
    texts = {(row["rollout"], row["group"], row["sample"]): row for row in run.recording.completions}
    assert len(texts) == 2 * 16  # with those that have no gradient
    for row in rows:
        part, place = step.batches[row["micro_batch"]], row["row"]
        length = len(row["token_ids"])
        assert part.batch.completion_ids[place, :length].tolist() == row["token_ids"]
        assert part.evaluated.weights.total[place, :length].tolist() == row["weights"]
        assert part.rollout_log_probs[place, :length].tolist() == row["rollout_log_probs"]
        whole = texts[row["rollout"], row["group"], row["sample"]]
        assert whole["reward"] == row["reward"] == text_reward(whole["completion"], {"prompt": whole["prompt"]})


def test_the_model_is_that_before_the_last_update(run):
    saved = load_file(run.recording.model_folder / "model.safetensors")
    before, after = run.noted.parameters[-2:]
    assert all(torch.equal(before[name], weight) for name, weight in saved.items())
    assert not all(torch.equal(after[name], weight) for name, weight in saved.items())


def test_every_completion_is_recorded_on_request(tmp_path, model_folder):
    data = small_data(updates_per_rollout=2, reward=lambda completion, example: 1.0)
    data.keeps_every_completion = True
    run = recorded(tmp_path, model_folder, rollouts=1, data=data)
    assert run.recording.manifest.every_completion
    for step in run.recording:
        assert sum(int(part.batch.policy.response_mask.any(dim=-1).sum()) for part in step.batches) == 8
        assert all(float(part.evaluated.weights.total.abs().max()) == 0 for part in step.batches)
    assert len(run.recording.tokens) == 16


def test_a_rollout_that_a_checkpoint_has_begun_is_trained_and_not_recorded(tmp_path, model_folder):
    first = fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=2), max_steps=1)
    first.trainer.save_checkpoint(tmp_path / "begun.ckpt")
    recorder = RolloutRecorder(tmp_path / "recording")
    options = {"ckpt_path": tmp_path / "begun.ckpt", "max_steps": 100, "callbacks": [recorder]}
    fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=2), **options)
    assert [entry.step for entry in Recording(tmp_path / "recording").manifest.steps] == [3, 4]


def test_a_training_that_ends_early_leaves_what_it_has(tmp_path, model_folder):
    run = recorded(tmp_path, model_folder, rollouts=5, max_steps=3)
    assert (run.recording.manifest.rollouts, len(run.recording), run.recording.manifest.model_step) == (2, 3, 3)


def test_a_training_that_must_go_on_is_not_recorded_further(tmp_path, model_folder):
    run = recorded(tmp_path, model_folder, rollouts=1, min_steps=5)
    assert run.trainer.global_step > 4
    assert ([entry.step for entry in run.recording.manifest.steps], run.recording.manifest.model_step) == ([1, 2], 2)
    assert len(run.recording.completions) == 16


PARTS = {
    "weights of tokens": ({"token_weights": PositionWeights(power=1.0)}, gmpo()),
    "spans": ({"spans": Sentences()}, PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean()))),
    "token correction": ({"correction": TokenCorrection(max_weight=1.02)}, gmpo()),
    "sequence correction": ({"correction": SequenceCorrection()}, pmpo()),
    "future": ({}, fipo()),
    "advantages per token": ({"advantages": WhitenedReturns(discount=0.5)}, grpo()),
}


@pytest.mark.parametrize(("options", "objective"), PARTS.values(), ids=PARTS)
def test_whatever_the_job_gives_the_objective_is_recorded(tmp_path, model_folder, options, objective):
    if "correction" in options:
        options = options | {"old_log_probs": "trainer", "rollouts": RecordingEngine(shift=0.1)}
    run = recorded(tmp_path, model_folder, objective, rollouts=1, data=small_data(updates_per_rollout=2, **options))
    last = run.recording.step(2)
    for part, result in zip(last.batches, evaluated_step(objective, last), strict=True):
        assert torch.equal(result.weights.total, part.evaluated.weights.total)
    row = compare_objectives(run.recording.folder, {"own": objective}, gradients="none").objectives[-1]
    assert (row["objective"], row["largest_difference"]) == ("own", 0)


def test_nothing_is_left_after_an_error(tmp_path, model_folder):
    calls = []

    def failing(completion, example):
        calls.append(completion)
        if len(calls) > 20:
            raise KeyError("answer")
        return text_reward(completion, example)

    data = small_data(updates_per_rollout=2, reward=failing)
    with pytest.raises(KeyError):
        recorded(tmp_path, model_folder, data=data)
    assert [path.name for path in tmp_path.iterdir() if "recording" in path.name] == []


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="which exists; choose another folder"):
        RolloutRecorder(tmp_path / "there")


def test_several_devices_are_refused(tmp_path):
    recorder = RolloutRecorder(tmp_path / "recording")
    with pytest.raises(ValueError, match=r"has 2; pass `--trainer\.devices 1`"):
        recorder.on_fit_start(SimpleNamespace(world_size=2), None)


def test_a_callback_that_ends_rollouts_early_is_refused(tmp_path, model_folder):
    recorder = RolloutRecorder(tmp_path / "out", rollouts=1)
    with pytest.raises(ValueError, match=r"`trainer\.callbacks` has RatioDeviationStop, .*; record without it"):
        fitted(tmp_path, model_folder, callbacks=[recorder, RatioDeviationStop(0.1)])
    assert not (tmp_path / "out").exists()


def test_a_number_of_rollouts_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rollouts` is 0"):
        RolloutRecorder(tmp_path / "recording", 0)


def test_adapters_are_recorded_merged(tmp_path, model_folder):
    pytest.importorskip("peft")
    from lightning_modules import LoRA

    module = PolicyModule(model_folder, grpo(), learning_rate=1e-2, lora=LoRA(rank=2))
    run = recorded(tmp_path, model_folder, rollouts=1, module=module, data=small_data(dataset=AdditionProblems(16)))
    assert run.recording.manifest.trained_parameters == "adapters"
    saved = load_file(run.recording.model_folder / "model.safetensors")
    assert not any("lora" in name for name in saved)
