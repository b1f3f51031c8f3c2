"""Gradients of the parameters: those of the training step, of any objective, and their variance."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po.recipes import gmpo, grpo
from lightning_modules.comparison import ParameterGradients, compare_objectives, parameter_gradients
from lightning_modules.comparison.evaluation import evaluated_step
from lightning_modules.comparison.gradients import recorded_policy
from tests.lightning_modules.recordings.test_recorder import recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    return recorded(tmp_path_factory.mktemp("recorded"), model_folder)


def gradient_of(loss, policy):
    found = torch.autograd.grad(loss, list(policy.model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found]).double()


@pytest.fixture(scope="module")
def parts(run):
    """The last step, the model before its update, and weights of three objectives on it."""
    step, policy = run.recording.step(4), recorded_policy(run.recording)
    weights = {"recorded": [part.evaluated.weights.total for part in step.batches]}
    for label, objective in {"grpo": grpo(clip_low=0.01, clip_high=0.01), "gmpo": gmpo()}.items():
        weights[label] = [result.weights.total for result in evaluated_step(objective, step)]
    return step, policy, weights


@pytest.mark.parametrize("per_completion", [True, False])
def test_gradients_are_those_of_the_training_loss(run, parts, per_completion):
    step, policy, weights = parts
    found = parameter_gradients(weights, step, policy, per_completion)
    # The gradient that the optimizer received is that of the loss, the negative objective.
    trained = torch.cat([gradient.flatten() for gradient in run.noted.gradients[-1].values()]).double()
    assert float(found.norms[0]) == pytest.approx(float(trained.norm()), rel=1e-5)
    objective = grpo(clip_low=0.01, clip_high=0.01)
    other = sum(
        gradient_of(objective(policy.log_probs(part.batch), part.batch.policy), policy) for part in step.batches
    )
    assert float(found.norms[1]) == pytest.approx(float(other.norm()), rel=1e-4)
    assert float(found.products[0, 1]) == pytest.approx(-float(trained @ other), rel=1e-4)
    assert float(found.cosines[0, 1]) == pytest.approx(
        -float(trained @ other / trained.norm() / other.norm()), rel=1e-4
    )
    assert float(found.cosines[0, 2]) == pytest.approx(1, abs=1e-6)
    assert found.cosines[0, 1] < 0.9999
    assert found.log_prob_difference < 1e-4
    assert (found.squares is None) is not per_completion


def test_squares_are_those_of_single_completions(parts):
    step, policy, weights = parts
    found = parameter_gradients({"grpo": weights["grpo"]}, step, policy)
    squares = 0.0
    for part, by_token in zip(step.batches, weights["grpo"], strict=True):
        for row in range(len(by_token)):
            log_probs = policy.log_probs(part.batch)
            squares += float(gradient_of((by_token[row] * log_probs[row]).sum(), policy).square().sum())
    assert float(found.squares[0]) == pytest.approx(squares, rel=1e-4)
    assert found.completions == 8  # with those that have no gradient


@pytest.mark.parametrize("per_completion", [True, False])
def test_a_micro_batch_without_trained_tokens_adds_nothing(parts, per_completion):
    step, policy, weights = parts
    expected = parameter_gradients(weights, step, policy, per_completion)
    part = step.batches[0]
    own = part.batch.policy
    untrained = replace(own, response_mask=torch.zeros_like(own.response_mask))
    longer = replace(step, batches=[replace(part, batch=part.batch.replace(policy=untrained)), *step.batches])
    first = {label: [by_batch[0], *by_batch] for label, by_batch in weights.items()}
    found = parameter_gradients(first, longer, policy, per_completion)
    assert torch.equal(found.products, expected.products)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_by_name(run, device):
    with pytest.raises(ValueError, match=f"`device` is '{device}', which cannot be used here"):
        recorded_policy(run.recording, device)


def test_variance_by_hand():
    # Completions with the gradients 1 and 2 in one dimension, and one without: mean 1, squared deviations 0, 1, 1.
    products = torch.tensor([[9.0, 0.0], [0.0, 0.0]], dtype=torch.double)
    found = ParameterGradients(("a", "b"), 1, products, torch.tensor([5.0, 0.0]).double(), 3.0, 0.0)
    assert float(found.noise_to_signal[0]) == pytest.approx(math.sqrt(3 * (2 / 2)) / 3)
    assert math.isnan(found.noise_to_signal[1])
    assert math.isnan(found.cosines[0, 1])
    without = ParameterGradients(("a",), 1, products[:1, :1], None, 3.0, 0.0)
    assert math.isnan(without.noise_to_signal[0])


def test_rows_of_the_gradients(run):
    comparison = compare_objectives(run.recording.folder, "grpo(clip_low=0.01, clip_high=0.01), gmpo")
    assert [row["objective"] for row in comparison.gradients] == [
        "recorded",
        "grpo(clip_low=0.01, clip_high=0.01)",
        "gmpo",
    ]
    first, narrow, own = comparison.gradients
    assert (first["norm_ratio"], first["step"], first["completions"]) == (1, 4, 8)
    assert first["cosine_to_recorded"] == pytest.approx(1)
    assert own["norm_ratio"] == pytest.approx(1)
    assert narrow["norm_ratio"] != pytest.approx(1, abs=1e-6)
    assert 0 < narrow["noise_to_signal"] < 10
    assert len(comparison.cosines) == 9
    steps = compare_objectives(run.recording.folder, "gmpo", gradients="steps")
    assert math.isnan(steps.gradients[1]["noise_to_signal"])
    assert steps.gradients[1]["norm"] == pytest.approx(own["norm"], rel=1e-5)


def test_another_model_is_refused(run, parts, model):
    step, policy, weights = parts
    saved = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05
    with pytest.raises(ValueError, match="so it is another model"):
        parameter_gradients(weights, step, policy, per_completion=False)
    policy.model.load_state_dict(saved)
