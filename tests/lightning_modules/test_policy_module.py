"""The Lightning module: its log-probabilities and gradients, its steps, what it skips and what it keeps."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.plugins import MixedPrecision
from transformers import AutoModelForCausalLM, AutoTokenizer

from aggregate_po import K3Penalty, PolicyBatch
from aggregate_po.recipes import dapo, gmpo, grpo, pmpo
from lightning_modules import PolicyModule
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.model.policy import Policy
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    NotedAdvantages,
    RecordingEngine,
    copied,
    exact,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    plain_log_probs,
    plain_logits,
    quiet_trainer,
    small_data,
    tokens_of,
)

PROMPTS = [[5, 6, 7, 8, 40], [9], [10, 11, 12]]
COMPLETIONS = [[20, 21], [22], [23, 24, 25], [26], [27, 28, 29, 30], [31, 32, 33]]


def example_batch(temperature=1.0, completions=COMPLETIONS):
    prompt_ids, prompt_mask = left_padded(PROMPTS)
    width = max(map(len, completions))
    mask = torch.arange(width) < torch.tensor([len(row) for row in completions]).unsqueeze(-1)
    completion_ids = torch.zeros(6, width, dtype=torch.long)
    completion_ids[mask] = torch.tensor([token for row in completions for token in row])
    policy = PolicyBatch(torch.zeros(6, width), mask, torch.zeros(6))
    prompt_of = torch.tensor([0, 0, 1, 1, 2, 2])
    return RolloutBatch(prompt_ids, prompt_mask, prompt_of, completion_ids, mask, policy, temperature)


@pytest.fixture
def module(model_folder):
    module = PolicyModule(model_folder, gmpo())
    module.configure_model()
    return module


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("completions", [COMPLETIONS, [[20], [21], [22], [23], [24], [25]]], ids=["long", "one token"])
def test_log_probs_are_those_of_a_plain_forward_pass(module, temperature, completions):
    """Row by row, without cache or padding; the gradient of a weighted sum too."""
    batch = example_batch(temperature, completions)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(batch.completion_ids.shape, generator=generator) * batch.completion_mask
    log_probs = module.policy.log_probs(batch)
    (log_probs * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in module.model.named_parameters()}

    module.model.zero_grad()
    total = 0.0
    for row, tokens in enumerate(completions):
        expected = plain_log_probs(module.model, PROMPTS[row // 2], tokens, temperature)
        assert (log_probs[row, : len(tokens)] - expected).abs().max() < 1e-5
        total = total + (expected * weights[row, : len(tokens)]).sum()
    total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in module.model.named_parameters()}
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    assert size > 0.1
    assert largest_difference(found, expected) < 1e-5 * max(size, 1)


def test_log_probs_of_a_rollout_are_those_that_its_engine_noted(tmp_path, model_folder):
    """Before the first update the policy is the behavior policy: all ratios are one."""
    recorder = BatchRecorder()
    run = fitted(tmp_path, model_folder, callbacks=[recorder], data=small_data(temperature=0.8))
    assert run.metrics["ratio/min"].item() == pytest.approx(1, abs=2e-5)
    assert run.metrics["ratio/max"].item() == pytest.approx(1, abs=2e-5)
    assert recorder.batches[0].temperature == 0.8


# Gradients and steps


def full_gradient(model, engine, objective, advantages, temperature=1.0):
    """Return the gradient of the objective on one full rollout, and its value."""
    prompts, generated = engine.prompts[0], engine.generated[0]
    model.zero_grad()
    log_probs = plain_log_prob_matrix(model, prompts, generated, temperature)
    value = objective(log_probs, PolicyBatch(generated.log_probs, generated.mask, advantages))
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, value.item()


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
@pytest.mark.parametrize("objective", [grpo(), dapo(), gmpo(), pmpo()], ids=["grpo", "dapo", "gmpo", "pmpo"])
def test_accumulated_gradient_is_that_of_the_whole_batch(tmp_path, model, model_folder, objective, accumulate):
    engine, recorder = RecordingEngine(shift=0.2), BatchRecorder()
    noted = NotedAdvantages(lambda step: step.rewards - step.rewards.mean())
    data = small_data(rollouts=engine, advantages=noted)
    options = {"accumulate_grad_batches": accumulate, "callbacks": [recorder], "precision": "64-true"}
    run = fitted(tmp_path, model_folder, module=ExactPolicy(model_folder, objective), data=data, **options)
    expected, value = full_gradient(exact(model).double(), engine, objective, noted.estimator(noted.steps[0]))
    assert len(recorder.batches) == accumulate
    assert largest_difference(recorder.gradients[0], {k: -v for k, v in expected.items()}) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 2e-3
    assert run.metrics["policy_loss"].item() == pytest.approx(-value, abs=1e-6)  # kept in float32 by Lightning


def test_any_number_of_micro_batches_trains_the_same_parameters(tmp_path, model_folder):
    """Two updates of plain gradient descent on one rollout; twelve completions are not divisible by five."""
    results = []
    for accumulate in (1, 2, 3, 5):
        module = ExactPolicy(model_folder, dapo(), warmup_steps=0, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        data = small_data(prompts_per_rollout=6, updates_per_rollout=2, rollouts=RecordingEngine(shift=0.2))
        options = {"max_steps": 2, "accumulate_grad_batches": accumulate, "precision": "64-true"}
        run = fitted(tmp_path, model_folder, data=data, module=module, **options)
        assert run.trainer.global_step == 2
        results.append(copied(run.module.model))
    start = copied(AutoModelForCausalLM.from_pretrained(model_folder))
    assert largest_difference(results[0], start) > 1e-2
    for result in results[1:]:
        assert largest_difference(result, results[0]) < 1e-12


def test_the_trainer_clips_the_gradient(tmp_path, model_folder):
    norms = []

    class Norms(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])))

    run = fitted(tmp_path, model_folder, callbacks=[Norms()], gradient_clip_val=1e-3)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert run.metrics["grad_norm"].item() > 1e-2  # logged as it was before


def test_gradient_norm_that_is_logged(tmp_path, model_folder):
    recorder = BatchRecorder()
    run = fitted(tmp_path, model_folder, callbacks=[recorder], accumulate_grad_batches=3)
    squares = sum(float(gradient.double().square().sum()) for gradient in recorder.gradients[0].values())
    assert run.metrics["grad_norm"].item() == pytest.approx(math.sqrt(squares), rel=1e-5)


@pytest.mark.parametrize(("warmup_steps", "factors"), [(4, [0.25, 0.5, 0.75, 1, 1, 1]), (1, [1] * 6), (0, [1] * 6)])
def test_the_learning_rate_rises_over_the_warm_up(tmp_path, model_folder, warmup_steps, factors):
    used, logged = [], []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            used.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            logged.append(trainer.callback_metrics["learning_rate"].item())

    module = PolicyModule(model_folder, gmpo(), learning_rate=2e-4, warmup_steps=warmup_steps)
    data = small_data(updates_per_rollout=2)
    fitted(tmp_path, model_folder, data=data, module=module, max_steps=6, callbacks=[Rates()])
    assert used == pytest.approx([2e-4 * factor for factor in factors])
    assert logged == pytest.approx(used)


def test_the_optimizer_is_adamw_with_the_given_numbers(tmp_path, model_folder):
    module = PolicyModule(model_folder, gmpo(), learning_rate=3e-4, weight_decay=0.02)
    optimizer = fitted(tmp_path, model_folder, module=module).trainer.optimizers[0]
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 0.02
    assert optimizer.param_groups[0]["initial_lr"] == 3e-4
    assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == module.model.num_parameters()


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-true", True), ("bf16-mixed", None)])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_adamw_is_fused_where_gradients_can_be_clipped_then(tmp_path, model_folder, precision, fused, algorithm):
    options = {"precision": precision, "gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    module = PolicyModule(model_folder, gmpo(), learning_rate=3e-4)
    optimizer = fitted(tmp_path, model_folder, module=module, **options).trainer.optimizers[0]
    assert optimizer.param_groups[0]["fused"] is fused


def test_another_optimizer_stays_as_it_is(tmp_path, model_folder):
    module = PolicyModule(model_folder, gmpo(), optimizer=torch.optim.AdamW)
    optimizer = fitted(tmp_path, model_folder, module=module).trainer.optimizers[0]
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize(
    ("precision", "computed", "stored"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
    ],
)
def test_every_precision_trains(tmp_path, model_folder, precision, computed, stored):
    """Low precision is used in all forward passes, rollouts included; mixed precision stores float32."""
    dtypes = []

    class Dtypes(Callback):
        def on_train_start(self, trainer, pl_module):
            with trainer.precision_plugin.forward_context():  # the model is tried out in float32, too
                trainer.datamodule.rollouts.load_policy(pl_module.model)
            forward = pl_module.model.model.layers[0].mlp.up_proj.forward
            pl_module.model.model.layers[0].mlp.up_proj.forward = lambda x: noted(forward(x))

            def noted(output):
                dtypes.append(output.dtype)
                return output

    recorder = BatchRecorder()
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, warmup_steps=0)
    options = {"precision": precision, "max_steps": 3, "callbacks": [Dtypes(), recorder]}
    run = fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=2), module=module, **options)
    assert set(dtypes) == {computed}
    assert {parameter.dtype for parameter in run.module.model.parameters()} == {stored}
    assert all(torch.isfinite(parameter).all() for parameter in run.module.model.parameters())
    for before, after in zip(recorder.parameters, recorder.parameters[1:], strict=False):
        assert largest_difference(before, after) > (1e-3 if stored == torch.bfloat16 else 0.95e-3)  # a step of AdamW


def test_mixed_precision_has_nearly_the_gradient_of_full_precision(tmp_path, model_folder):
    """On the same completions: those of full precision, repeated for the other."""
    gradients, engine = [], RecordingEngine(shift=0.2)
    for precision in ("32-true", "bf16-mixed"):
        recorder = BatchRecorder()
        if gradients:
            generated = engine.generated[0]
            engine.generate = lambda prompts, sampling, generated=generated: generated
        fitted(tmp_path, model_folder, data=small_data(rollouts=engine), precision=precision, callbacks=[recorder])
        gradients.append(torch.cat([gradient.flatten() for gradient in recorder.gradients[0].values()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert 0.95 < float(gradients[1].norm() / gradients[0].norm()) < 1.05


# Gradients that are not finite


class Poison(Callback):
    """Puts a NaN or an infinity into the gradient of the given optimizer steps; keeps parameters and state."""

    def __init__(self, steps, value=math.nan):
        self.steps, self.value, self.number = steps, value, 0
        self.before, self.after = [], []

    def on_after_backward(self, trainer, pl_module):
        if self.number in self.steps:
            next(pl_module.model.parameters()).grad[0, 0] = self.value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(self.snapshot(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.number += 1
        self.after.append(self.snapshot(trainer, pl_module))

    def snapshot(self, trainer, pl_module):
        state = {
            f"{number}.{name}": value.detach().clone()
            for number, entries in trainer.optimizers[0].state_dict()["state"].items()
            for name, value in entries.items()
        }
        skipped = trainer.callback_metrics.get("skipped_steps")
        return SimpleNamespace(parameters=copied(pl_module.model), state=state, skipped=skipped)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gradient_clip_val", [None, 1.0])
def test_a_step_whose_gradient_is_not_finite_is_skipped(tmp_path, model_folder, value, gradient_clip_val):
    poison = Poison({1}, value)
    options = {"max_steps": 4, "callbacks": [poison], "gradient_clip_val": gradient_clip_val}
    run = fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=4), **options)
    assert run.trainer.global_step == 4
    for number in range(4):
        before, after = poison.before[number], poison.after[number]
        moved = largest_difference(before.parameters, after.parameters)
        if number == 1:
            assert moved == 0
            assert len(before.state) > 0
            assert largest_difference(before.state, after.state) == 0
        else:
            assert moved > 0
    assert all(torch.isfinite(parameter).all() for parameter in run.module.model.parameters())
    assert run.metrics["skipped_steps"].item() == 1
    assert [after.skipped.item() for after in poison.after] == [0, 1, 1, 1]


def test_a_finite_step_begins_the_count_anew(tmp_path, model_folder):
    poison = Poison({0, 1, 3, 4, 6})
    run = fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=4), max_steps=8, callbacks=[poison])
    assert run.trainer.global_step == 8
    assert run.metrics["skipped_steps"].item() == 5


@pytest.mark.parametrize("most", [1, 3])
def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path, model_folder, most):
    poison = Poison({1, 2, 3, 4})
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, max_skipped_steps=most)
    with pytest.raises(FloatingPointError, match=rf"not finite in {most} optimizer steps in a row; lower"):
        fitted(tmp_path, model_folder, module=module, max_steps=8, callbacks=[poison])
    assert poison.number == most


class Overflow(Callback):
    """Makes the gradient infinite while the loss has a larger scale than this."""

    def __init__(self, largest):
        self.largest, self.scales = largest, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())

    def on_after_backward(self, trainer, pl_module):
        if trainer.precision_plugin.scaler.get_scale() > self.largest:
            next(pl_module.model.parameters()).grad[0, 0] = math.inf


def scaled(tmp_path, model_folder, overflow, steps):
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    data = small_data(updates_per_rollout=4)
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, max_skipped_steps=3)
    return fitted(
        tmp_path, model_folder, data=data, module=module, max_steps=steps, plugins=plugins, callbacks=[overflow]
    )


def test_a_scaler_that_looks_for_its_scale_stops_no_run(tmp_path, model_folder):
    overflow = Overflow(largest=1000)
    run = scaled(tmp_path, model_folder, overflow, steps=12)
    assert overflow.scales == [65536 / 2**step for step in range(7)] + [512] * 5
    assert run.metrics["skipped_steps"].item() == 7


def test_without_a_scale_that_serves_a_run_is_stopped(tmp_path, model_folder):
    overflow = Overflow(largest=0)
    with pytest.raises(FloatingPointError, match="not finite in 3 optimizer steps in a row"):
        scaled(tmp_path, model_folder, overflow, steps=40)
    assert overflow.scales == [65536 / 2**step for step in range(19)]


# The reference


def test_without_a_penalty_there_is_no_reference(tmp_path, model_folder, monkeypatch):
    loaded = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **options: (loaded.append(a), load(*a, **options))[1]
    )
    run = fitted(tmp_path, model_folder, grpo(penalties=[K3Penalty(0.0)]))
    assert len(loaded) == 1
    assert not run.module.policy.keeps_reference
    assert "kl" not in run.metrics
    with pytest.raises(RuntimeError, match=r"the policy keeps no reference; call `keep_reference\(\)`"):
        run.module.policy.reference_log_probs(example_batch())


@pytest.mark.parametrize("early", [True, False])
def test_a_reference_may_be_asked_for_before_the_model_is_loaded_or_after(model_folder, early):
    policy = Policy(model_folder)
    if early:
        policy.keep_reference()
    policy.load()
    if not early:
        assert policy.reference is None
        policy.model.lm_head.weight.data += 1.0  # the reference is what the policy was at first
        policy.keep_reference()
    expected = copied(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
    assert largest_difference(copied(policy.reference), expected) == 0
    policy.keep_reference()  # once more changes nothing
    batch = example_batch()
    assert torch.isfinite(policy.reference_log_probs(batch)).all()


def test_a_policy_that_is_not_loaded_says_so(model_folder):
    with pytest.raises(RuntimeError, match="the policy is not loaded; fit or validate its PolicyModule"):
        Policy(model_folder).model  # noqa: B018
    with pytest.raises(RuntimeError, match="the policy is not loaded"):
        Policy(model_folder).tokenizer  # noqa: B018


def test_the_reference_stays_the_first_policy(tmp_path, model, model_folder):
    recorder = BatchRecorder()
    module = PolicyModule(model_folder, grpo(penalties=[K3Penalty(0.1)]), learning_rate=1e-2, warmup_steps=0)
    run = fitted(tmp_path, model_folder, module=module, max_steps=3, callbacks=[recorder])
    reference = run.module.policy.reference
    start = copied(model)
    assert largest_difference(copied(reference), start) == 0
    assert largest_difference(copied(run.module.model), start) > 1e-2
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reference.parameters())
    assert len(run.module.state_dict()) == len(run.module.model.state_dict())
    assert sum(p.numel() for p in run.module.parameters()) == model.num_parameters()

    last = recorder.batches[-1]
    for row in range(len(last.completion_ids)):
        tokens = last.completion_ids[row][last.completion_mask[row]].tolist()
        prompt = last.prompt_ids[last.prompt_of[row]][last.prompt_mask[last.prompt_of[row]]].tolist()
        expected = plain_log_probs(model, prompt, tokens)
        assert (last.policy.ref_log_probs[row, : len(tokens)] - expected).abs().max() < 1e-5
    differences = last.policy.ref_log_probs - last.policy.old_log_probs
    assert differences.abs().max() > 1e-2  # the policy that generated the last rollout had moved away


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_at_the_first_step_the_policy_is_its_reference(tmp_path, model_folder, precision):
    """In every precision, so that the divergence begins at zero."""
    run = fitted(tmp_path, model_folder, grpo(penalties=[K3Penalty(0.1)]), precision=precision)
    assert 0 <= run.metrics["kl"].item() < 1e-9


def test_the_divergence_that_is_logged(tmp_path, model, model_folder):
    """The mean over tokens of k3, under the policy before the update."""
    recorder, engine = BatchRecorder(), RecordingEngine()
    module = PolicyModule(model_folder, grpo(penalties=[K3Penalty(0.1)]), learning_rate=1e-2, warmup_steps=0)
    options = {"max_steps": 2, "accumulate_grad_batches": 2, "callbacks": [recorder]}
    run = fitted(tmp_path, model_folder, module=module, data=small_data(rollouts=engine), **options)
    policy = copy.deepcopy(model)
    policy.load_state_dict(recorder.parameters[1], strict=False)
    prompts, generated = engine.prompts[1], engine.generated[1]
    with torch.no_grad():
        log_ratio = plain_log_prob_matrix(policy, prompts, generated) - plain_log_prob_matrix(model, prompts, generated)
    k3 = (torch.exp(-log_ratio) - 1 + log_ratio)[generated.mask].mean().item()
    assert k3 > 1e-3
    assert run.metrics["kl"].item() == pytest.approx(k3, rel=1e-3)


# Metrics


@pytest.mark.parametrize(("accumulate", "temperature"), [(1, 1.0), (3, 0.6)])
def test_the_entropy_that_is_logged(tmp_path, model, model_folder, accumulate, temperature):
    """Mean over all tokens of the entropy of the distribution that each was generated from."""
    engine = RecordingEngine()
    data = small_data(
        rollouts=engine, temperature=temperature, advantages=NotedAdvantages(lambda step: step.rewards + 1)
    )
    run = fitted(tmp_path, model_folder, data=data, accumulate_grad_batches=accumulate)
    entropies = []
    for row in range(len(engine.generated[0].token_ids)):
        logits = plain_logits(model, engine.prompts[0][row // 4], tokens_of(engine.generated[0], row), temperature)
        entropies += torch.distributions.Categorical(logits=logits).entropy().tolist()
    assert run.metrics["entropy"].item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_metrics_are_those_of_one_update(tmp_path, model_folder):
    """The first update on a rollout begins at ratio one, whatever came before; the second one does not."""
    seen = []

    class Metrics(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch.closes_update:
                seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-2, warmup_steps=0)
    options = {"max_steps": 4, "accumulate_grad_batches": 2, "callbacks": [Metrics()]}
    fitted(tmp_path, model_folder, module=module, data=small_data(updates_per_rollout=2), **options)
    assert [metrics["ratio/max"] for metrics in seen[0::2]] == pytest.approx([1, 1], abs=1e-4)
    assert [metrics["ratio/min"] for metrics in seen[0::2]] == pytest.approx([1, 1], abs=1e-4)
    assert min(metrics["ratio/max"] for metrics in seen[1::2]) > 1.05
    assert [abs(metrics["policy_loss"]) < 1e-4 for metrics in seen] == [True, False, True, False]


def test_an_update_without_tokens_has_no_metrics_and_a_loss_of_zero(tmp_path, model_folder):
    data = small_data(max_completion_length=1, truncated="mask")
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3)
    module.configure_model()
    module.model.generation_config.eos_token_id = None  # nothing but the rare end of sequence finishes
    run = fitted(tmp_path, model_folder, module=module, data=data)
    assert run.metrics["policy_loss"].item() == 0
    assert math.isnan(run.metrics["entropy"].item())
    assert run.metrics["grad_norm"].item() == 0
    assert run.metrics["completions/clipped_ratio"].item() == 1


# Construction, loading, saving


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model_name": "/not/there"}, ValueError, "`model_name` is '/not/there', which is not a folder; pass one"),
        ({"model_name": "tests"}, ValueError, "`model_name` is 'tests', which is a folder without a config.json"),
        ({"model_name": "runs/a/model"}, ValueError, "`model_name` is 'runs/a/model', which is not a folder"),
        ({"objective": "gmpo"}, TypeError, "`objective` is 'gmpo'; pass a PolicyObjective"),
        ({"objective": gmpo}, TypeError, "`objective` is <function gmpo.*pass a PolicyObjective"),
        ({"learning_rate": 0.0}, ValueError, r"`learning_rate` is 0\.0; pass a positive number"),
        ({"learning_rate": math.nan}, ValueError, "`learning_rate` is nan; pass a positive number"),
        ({"warmup_steps": -1}, ValueError, "`warmup_steps` is -1; pass 0 or more"),
        ({"weight_decay": -0.1}, ValueError, r"`weight_decay` is -0\.1; pass 0 or more"),
        ({"max_skipped_steps": 0}, ValueError, "`max_skipped_steps` is 0; pass 1 or more"),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        PolicyModule(**{"model_name": "nowhere", "objective": gmpo(), **arguments})


def test_a_model_can_be_made_on_the_spot(tmp_path, model_folder):
    class Source:
        calls = 0

        def prepare(self):
            self.calls += 1
            return model_folder

    source = Source()
    run = fitted(tmp_path, model_folder, module=PolicyModule(source, gmpo()))
    assert source.calls > 0
    assert run.trainer.global_step == 1


@pytest.mark.parametrize(("asked", "used"), [(None, "sdpa"), ("eager", "eager")])
def test_policy_and_reference_have_the_attention_that_was_asked_for(model_folder, asked, used):
    module = PolicyModule(model_folder, grpo(penalties=[K3Penalty(0.1)]), attn_implementation=asked)
    module.configure_model()
    models = [module.model, module.policy.reference]
    assert [one.config._attn_implementation for one in models] == [used, used]


def test_stop_tokens_are_those_of_model_and_tokenizer(module):
    eos = module.policy.tokenizer.eos_token_id
    module.model.generation_config.eos_token_id = [7, 3]
    assert module.policy.stop_token_ids == tuple(sorted({3, 7, eos}))
    module.model.generation_config.eos_token_id = 9
    assert module.policy.stop_token_ids == tuple(sorted({9, eos}))
    module.model.generation_config.eos_token_id = None
    assert module.policy.stop_token_ids == (eos,)
    module.model.generation_config = None
    assert module.policy.stop_token_ids == (eos,)


def test_a_model_without_stop_token_is_an_error(module):
    module.model.generation_config.eos_token_id = None
    module.policy.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"`model_name` '.*' has no end-of-sequence token; set `eos_token`"):
        module.policy.stop_token_ids  # noqa: B018


def test_a_saved_policy_loads_as_it_was(tmp_path, model_folder):
    module = fitted(tmp_path, model_folder, max_steps=2).module
    module.policy.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert largest_difference(copied(loaded), copied(module.model)) == 0
    text = r"What is 12 + 3? \boxed{15}"
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode(text) == module.policy.tokenizer.encode(text)
    start = AutoModelForCausalLM.from_pretrained(model_folder)
    assert largest_difference(copied(loaded), copied(start)) > 0


class RandomNumbers(Callback):
    """Records a random number of the global generator at the start of each step."""

    def __init__(self):
        self.numbers = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.numbers.append(torch.rand(1).item())


def test_a_checkpoint_restores_counters_and_the_random_state(tmp_path, model_folder):
    torch.manual_seed(1)
    undisturbed = RandomNumbers()
    data = small_data(updates_per_rollout=2)
    fitted(tmp_path, model_folder, data=data, max_steps=4, callbacks=[undisturbed])
    torch.manual_seed(1)
    first, second = RandomNumbers(), RandomNumbers()
    options = {"data": small_data(updates_per_rollout=2), "max_steps": 3, "callbacks": [first, Poison({1, 2})]}
    stopped = fitted(tmp_path, model_folder, **options)
    stopped.trainer.save_checkpoint(tmp_path / "three.ckpt")
    torch.manual_seed(2)
    options = {"data": small_data(updates_per_rollout=2), "max_steps": 4, "callbacks": [second]}
    resumed = fitted(tmp_path, model_folder, ckpt_path=tmp_path / "three.ckpt", **options)
    assert first.numbers + second.numbers == undisturbed.numbers
    assert resumed.metrics["skipped_steps"].item() == 2
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row"):
        fitted(
            tmp_path,
            model_folder,
            data=small_data(updates_per_rollout=2),
            ckpt_path=tmp_path / "three.ckpt",
            max_steps=4,
            callbacks=[Poison({0})],
        )


def test_validation_logs_the_mean_reward_and_length(tmp_path, model_folder):
    engine = RecordingEngine()
    held_out = [{"prompt": f"What is {number}?", "half": number % 2} for number in range(6)]
    data = small_data(validation=held_out, rollouts=engine, reward=lambda text, example: example["half"] / 2)
    trainer = quiet_trainer(tmp_path)
    (sampled, greedy) = trainer.validate(PolicyModule(model_folder, gmpo()), data, verbose=False)
    metrics = {**sampled, **greedy}
    assert metrics["val/reward_sampled"] == metrics["val/reward_greedy"] == pytest.approx(0.25)
    assert "val/pass@1_sampled" not in metrics
    lengths = [generated.mask.sum(dim=-1).double().mean().item() for generated in engine.generated]
    assert metrics["val/mean_length_sampled"] == pytest.approx(lengths[0])
    assert metrics["val/mean_length_greedy"] == pytest.approx(lengths[1])
    assert [sampling.temperature for sampling in engine.sampling] == [1.0, 0.0]
