"""A sampler whose log-probabilities are not the trainer's: measured, corrected, and never trained on unnoticed."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po import CorrectionWeights, PolicyBatch, SequenceCorrection, TokenCorrection
from aggregate_po.penalties import K3Penalty
from aggregate_po.recipes import gmpo, grpo
from lightning_modules.batch import RolloutBatch
from lightning_modules.data.metrics import mismatch_metrics, mismatch_tally
from tests.lightning_modules.test_batch import example_batch
from tests.lightning_modules.test_policy_module import NotedAdvantages
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    RecordingEngine,
    exact,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    small_data,
)


class Forgetful(RecordingEngine):
    """Gives no log-probability for the first token of each completion."""

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        log_probs = generated.log_probs.clone()
        log_probs[:, 0] = math.nan
        return replace(generated, log_probs=log_probs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_old_log_probs_may_be_the_trainers_own(tmp_path, model_folder, model, temperature):
    engine, recorder = RecordingEngine(shift=0.5), BatchRecorder()
    noted = NotedAdvantages(lambda step: torch.ones_like(step.rewards))
    data = small_data(rollouts=engine, old_log_probs="trainer", temperature=temperature, advantages=noted)
    run = fitted(tmp_path, model_folder, data=data, callbacks=[recorder])
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, engine.prompts[0], engine.generated[0], temperature)
    batch = recorder.batches[0].policy
    assert (batch.old_log_probs - expected).abs().max() < 1e-5
    assert (batch.old_log_probs - engine.generated[0].log_probs).abs().max() > 0.1
    assert run.metrics["ratio/max"].item() == pytest.approx(1, abs=2e-5)
    assert batch.correction == CorrectionWeights()


class Rounding(RecordingEngine):
    """Gives log-probabilities in a dtype of its own."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        return replace(generated, log_probs=generated.log_probs.to(self.dtype))


@pytest.mark.parametrize(
    ("source", "given", "precision", "dtype"),
    [
        ("trainer", torch.bfloat16, "32-true", torch.float32),
        ("trainer", torch.float32, "64-true", torch.float64),
        ("sampler", torch.float16, "32-true", torch.float32),
    ],
)
def test_the_trainer_keeps_its_precision_whatever_the_engines(tmp_path, model_folder, source, given, precision, dtype):
    recorder = BatchRecorder()
    module = ExactPolicy(model_folder, gmpo(penalties=[K3Penalty(0.1)]))
    data = small_data(rollouts=Rounding(given), old_log_probs=source)
    run = fitted(tmp_path, model_folder, module=module, data=data, callbacks=[recorder], precision=precision)
    policy = recorder.batches[0].policy
    assert {policy.old_log_probs.dtype, policy.ref_log_probs.dtype, policy.advantages.dtype} == {dtype}
    if source == "trainer":
        assert run.metrics["ratio/max"].item() == pytest.approx(1, abs=2e-5)


def test_the_mismatch_is_logged(tmp_path, model_folder, model):
    engine = RecordingEngine(shift=0.5)
    correction = TokenCorrection(1.5)
    run = fitted(
        tmp_path, model_folder, data=small_data(rollouts=engine, old_log_probs="trainer", correction=correction)
    )
    (generated,) = engine.generated
    with torch.no_grad():
        difference = (plain_log_prob_matrix(model, engine.prompts[0], generated) - generated.log_probs)[generated.mask]
    weights = difference.exp().clamp(max=1.5)
    logged = {
        name.removeprefix("sampling/"): float(value) for name, value in run.metrics.items() if "sampling/" in name
    }
    assert logged == pytest.approx(
        {
            "sampling_logp_difference/mean": float(difference.abs().mean()),
            "sampling_logp_difference/max": float(difference.abs().max()),
            "kl": -float(difference.mean()),
            "missing_log_probs": 0.0,
            "importance_sampling_ratio/min": float(weights.min()),
            "importance_sampling_ratio/mean": float(weights.mean()),
            "importance_sampling_ratio/max": 1.5,
            "ess_fraction": float(weights.sum() ** 2 / weights.square().sum() / len(weights)),
        },
        rel=1e-4,
    )


def test_metrics_of_ranks_are_put_together():
    """Differences 0.3, 0.2, 1.5, 0 on one rank, one of 0.5 and a missing one on the other."""
    old = [torch.tensor([[0.3, -0.2, 1.5, 0.0]]), torch.tensor([[0.5, 1.0]])]
    rollout = [torch.zeros(1, 4), torch.tensor([[0.0, math.nan]])]
    masks = [torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)]
    first, second = (mismatch_tally(*tensors, CorrectionWeights()) for tensors in zip(old, rollout, masks, strict=True))
    metrics = mismatch_metrics(first + second)
    weights = torch.tensor([0.3, -0.2, 1.5, 0.0, 0.5, 0.0]).exp()
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(2.5 / 5)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(1.5)
    assert metrics["sampling/kl"] == pytest.approx(-2.1 / 5)
    assert metrics["sampling/missing_log_probs"] == 1
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx(math.exp(-0.2))
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(math.exp(1.5))
    assert metrics["sampling/ess_fraction"] == pytest.approx(float(weights.sum() ** 2 / weights.square().sum() / 6))


def test_weights_of_completions_and_masked_tokens_are_measured_as_they_are_applied():
    old, rollout = torch.tensor([[0.3, -0.2, 1.5, 0.0]]).double(), torch.zeros(1, 4).double()
    mask = torch.ones(1, 4, dtype=torch.bool)
    for correction, smallest, mean, largest in (
        (SequenceCorrection(math.inf), 4.95303242, 4.95303242, 4.95303242),
        (SequenceCorrection(3.0), 0.0, 0.0, 0.0),
        (TokenCorrection(2.0, 0.5, "mask"), 0.0, (1.34985881 + 0.81873075 + 1) / 4, 1.34985881),
    ):
        metrics = mismatch_metrics(mismatch_tally(old, rollout, mask, correction(old, rollout, mask)))
        found = [metrics[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
        assert found == pytest.approx([smallest, mean, largest], abs=1e-7)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        (("kept",), [1, 1, 0, 1]),
        (("log_token",), [2, 0.5, 3, 1]),
        (("log_token", "kept"), [2, 0.5, 0, 1]),
        (("log_sequence",), [4]),
        (("kept", "log_sequence"), [4, 4, 0, 4]),
        (("log_token", "kept", "log_sequence"), [8, 2, 0, 4]),
    ],
    ids=str,
)
def test_weights_of_any_combination_are_measured_as_they_are_applied(fields, weights):
    given = {
        "log_token": torch.tensor([[2.0, 0.5, 3.0, 1.0]]).log(),
        "kept": torch.tensor([[True, True, False, True]]),
        "log_sequence": torch.tensor([4.0]).log(),
    }
    correction = CorrectionWeights(**{name: given[name] for name in fields})
    mismatch = torch.full((1, 4), 0.3), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    metrics = mismatch_metrics(mismatch_tally(*mismatch, correction))
    found = [metrics[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max")]
    assert found == pytest.approx([min(weights), sum(weights) / len(weights), max(weights)])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("correction", [TokenCorrection(1.2), SequenceCorrection(2.0, 0.5, "truncate")], ids=str)
def test_the_corrected_gradient_is_that_of_the_whole_batch(tmp_path, model, model_folder, correction, accumulate):
    engine, recorder = RecordingEngine(shift=0.4), BatchRecorder()
    noted = NotedAdvantages(lambda step: step.rewards - step.rewards.mean())
    data = small_data(rollouts=engine, advantages=noted, old_log_probs="trainer", correction=correction)
    options = {"accumulate_grad_batches": accumulate, "callbacks": [recorder], "precision": "64-true"}
    fitted(tmp_path, model_folder, module=ExactPolicy(model_folder, grpo()), data=data, **options)
    reference, (generated,) = exact(model).double(), engine.generated
    reference.zero_grad()
    log_probs = plain_log_prob_matrix(reference, engine.prompts[0], generated)
    old = log_probs.detach()
    weights = correction(old, generated.log_probs, generated.mask)
    advantages = noted.estimator(noted.steps[0])
    grpo()(log_probs, PolicyBatch(old, generated.mask, advantages, correction=weights)).backward()
    expected = {name: -parameter.grad for name, parameter in reference.named_parameters()}
    assert largest_difference(recorder.gradients[0], expected) < 1e-9
    reference.zero_grad()


def test_tokens_without_a_log_prob_leave_the_correction_and_are_counted(tmp_path, model_folder):
    recorder = BatchRecorder()
    data = small_data(rollouts=Forgetful(shift=0.5), old_log_probs="trainer", correction=TokenCorrection(1.5))
    run = fitted(tmp_path, model_folder, gmpo(), data=data, callbacks=[recorder])
    assert run.metrics["sampling/missing_log_probs"].item() == 16
    weights = recorder.batches[0].policy.correction.log_token
    assert (weights[:, 0] == 0).all()
    assert (weights[:, 1:] != 0).any()
    assert all(torch.isfinite(parameter).all() for parameter in run.module.model.parameters())


def test_they_cannot_be_the_behavior_policys(tmp_path, model_folder):
    with pytest.raises(ValueError, match=r"^the sampler gave no log-probability for 16 of \d+ tokens; let the trainer"):
        fitted(tmp_path, model_folder, data=small_data(rollouts=Forgetful()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": TokenCorrection()}, r"^`correction` is TokenCorrection\(.*, but `old_log_probs` is 'sampler'"),
        ({"old_log_probs": "vllm"}, r"^`old_log_probs` is 'vllm'; pass one of sampler, trainer"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_data(**options)


@pytest.mark.parametrize("level", ["token", "sequence", "none"])
def test_corrections_survive_selection_and_a_checkpoint(level):
    batch = example_batch()
    mask = batch.policy.response_mask
    correction = {
        "token": CorrectionWeights(log_token=torch.arange(24.0).reshape(6, 4), kept=mask),
        "sequence": CorrectionWeights(log_sequence=torch.arange(6.0)),
        "none": CorrectionWeights(),
    }[level]
    batch = batch.replace(policy=replace(batch.policy, correction=correction))
    rows = torch.tensor([1, 3])
    chosen = batch.select(rows).policy.correction
    back = RolloutBatch.from_state_dict(batch.state_dict()).policy.correction
    if level == "token":
        assert chosen.log_token.tolist() == [[4.0], [12.0]]
        assert torch.equal(back.log_token, torch.where(mask, correction.log_token, 0))
        assert back.kept.dtype == torch.bool
        assert batch.policy.to(torch.float64).correction.kept.dtype == torch.bool
    elif level == "sequence":
        assert chosen.log_sequence.tolist() == [1.0, 3.0]
        assert torch.equal(back.log_sequence, correction.log_sequence)
        assert batch.policy.to(torch.float64).correction.log_sequence.dtype == torch.float64
    else:
        assert chosen == back == CorrectionWeights()
