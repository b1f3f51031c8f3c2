"""Training of flow-matching models: gradients, micro-batches, windows, references, evaluation and resumes."""

import math
from contextlib import contextmanager

import pytest
import torch
from lightning import Callback
from torch import nn

from aggregate_po import ArithmeticMean, PessimisticClip, PolicyObjective
from aggregate_po.advantages import Clamped, StepValues
from aggregate_po.recipes import grpo, real
from aggregate_po.transforms import Chain, RatioNorm
from lightning_modules import DraftRefinement, MicroBatchObserver, Replay, RunCheckpoint, TokenWeightsFile
from lightning_modules.flow import (
    CPS,
    ODE,
    FlowModule,
    FlowSDE,
    InverseStepSize,
    StepDiagnostics,
    StepWeights,
    StepWindow,
    sample_trajectories,
    uniform_times,
)
from lightning_modules.flow.inputs import DenoisingBatch
from lightning_modules.flow.mixture import MixtureConditions, MixtureVelocity
from lightning_modules.seeding import derived_seed
from tests.lightning_modules.flow.points import (
    EXAMPLES,
    Points,
    PointsSource,
    closeness,
    fitted_points,
    height,
    points_data,
)
from tests.lightning_modules.training import NotedAdvantages, fitted, quiet_trainer, small_data


class Recorder(MicroBatchObserver):
    """Keeps the micro-batches, and the gradient and the weights of each optimizer step."""

    def __init__(self):
        self.seen, self.gradients, self.weights = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})

    def on_micro_batch(self, trainer, micro_batch):
        self.seen.append(micro_batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.model.named_parameters()
        self.gradients.append({name: value.grad.clone() for name, value in named if value.requires_grad})


def recorded(folder, objective, **options):
    data = {name: options.pop(name) for name in list(options) if name not in TRAINER}
    recorder = Recorder()
    run = fitted_points(folder, objective, points_data(**data), callbacks=[recorder], **options)
    return run, recorder


TRAINER = ("max_steps", "accumulate_grad_batches")


def direct_gradient(batch, weights, loss_of_step):
    """Gradient of a loss written out for each step of each trajectory, from the latents alone."""
    model = Points()
    model.load_state_dict(weights)
    total = 0.0
    for row in range(len(batch.latents)):
        for step in range(batch.times.shape[1]):
            x, reached, scale = batch.latents[row, step], batch.latents[row, step + 1], batch.scales[row, step]
            target = batch.conditions["target"][batch.prompt_of[row]]
            velocity = model(x[None], batch.times[row, step, None], target[None])[0]
            t, width = batch.times[row, step], 1 / batch.times.shape[1]
            sigma = 0.7 * torch.sqrt(t / (1 - t if t < 1 else width))
            mean = x * (1 - sigma**2 / (2 * t) * width) - velocity * (1 + sigma**2 * (1 - t) / (2 * t)) * width
            torch.testing.assert_close(scale, sigma * math.sqrt(width))
            old = batch.means[row, step]
            log_ratio = ((reached - old).square() - (reached - mean).square()).mean() / (2 * scale**2)
            noise = (reached - old) / scale
            total = total + loss_of_step(log_ratio, ((old - mean) * noise).mean(), batch.policy.advantages[row], t)
    (-total / len(batch.latents)).backward()
    return {name: value.grad for name, value in model.named_parameters()}


def clipped(log_ratio, advantage, bound):
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - bound, 1 + bound) * advantage)


FLOW_GRPO = PolicyObjective(ArithmeticMean(), PessimisticClip(2e-4, 2e-4))
GUARD = PolicyObjective(ArithmeticMean(), Chain([RatioNorm(), PessimisticClip(1e-4, 1e-4)]))
PUBLISHED = {
    "flow_grpo": (FLOW_GRPO, None, lambda ratio, shift, advantage, t: clipped(ratio, advantage, 2e-4) / 5),
    "grpo_guard": (GUARD, None, lambda ratio, shift, advantage, t: clipped(-shift, advantage, 1e-4) / 5),
    "weighted": (GUARD, InverseStepSize(), lambda ratio, shift, advantage, t: clipped(-shift, advantage, 1e-4) / 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_are_those_of_the_published_losses(tmp_path, name):
    objective, step_weights, loss = PUBLISHED[name]
    _, recorder = recorded(tmp_path, objective, step_weights=step_weights, epochs_per_rollout=3, max_steps=3)
    gates = torch.cat([seen.evaluated.weights.gate.flatten() for seen in recorder.seen])
    assert 0 < float((gates == 0).float().mean()) < 1  # clipped steps and others
    for seen, weights, found in zip(recorder.seen, recorder.weights, recorder.gradients, strict=True):
        expected = direct_gradient(seen.batch, weights, loss)
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=2e-4, atol=2e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    "split", [{"accumulate_grad_batches": 3}, {"accumulate_grad_batches": 4, "steps_per_micro_batch": 25}]
)
def test_micro_batches_change_nothing(tmp_path, split):
    options = {"updates_per_rollout": 2, "max_steps": 4, "window": StepWindow(3), "step_weights": InverseStepSize()}
    whole, one = recorded(tmp_path, GUARD, **options)
    parts, several = recorded(tmp_path, GUARD, **options, **split)
    assert len(several.seen) > len(one.seen)
    for first, second in zip(one.gradients, several.gradients, strict=True):
        for name, gradient in first.items():
            torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=1e-7)
    assert parts.metrics["reward"] == whole.metrics["reward"]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"steps_per_micro_batch": 20}, [20, 20, 20, 20]),
        ({"steps_per_micro_batch": 20, "window": StepWindow(2)}, [20, 12]),
        ({"steps_per_micro_batch": 20, "dynamics": CPS()}, [20, 20, 20, 4]),  # its last step is deterministic
        ({"steps_per_micro_batch": 10, "accumulate_grad_batches": 2}, [40, 40]),  # more than the limit
    ],
    ids=["all steps", "window", "deterministic step", "too few micro-batches"],
)
def test_a_micro_batch_has_as_many_steps_in_its_forward_pass_as_allowed(tmp_path, options, sizes):
    _, recorder = recorded(tmp_path, FLOW_GRPO, **{"accumulate_grad_batches": 16, **options})
    found = [len(seen.batch.latents) * len(seen.batch.stochastic_steps) for seen in recorder.seen]
    trained = [int(seen.inputs.response_mask.any()) for seen in recorder.seen]
    assert sorted(size for size, some in zip(found, trained, strict=True) if some) == sorted(sizes)


def test_a_group_objective_is_that_of_the_whole_update(tmp_path):
    options = {"reward": lambda sample, example: float(sample[0] > 0), "max_steps": 2, "epochs_per_rollout": 2}
    _, whole = recorded(tmp_path, real(), **options)
    _, split = recorded(tmp_path, real(), accumulate_grad_batches=3, **options)
    for one, same in zip(whole.gradients, split.gradients, strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-7)


def test_only_the_steps_of_the_window_are_trained_and_it_moves(tmp_path):
    _, recorder = recorded(tmp_path, FLOW_GRPO, window=StepWindow(size=2, every=1), max_steps=5)
    for rollout, seen in enumerate(recorder.seen):
        start = rollout % 4
        assert seen.inputs.response_mask[0].tolist() == [start <= step < start + 2 for step in range(5)]
        assert (seen.batch.scales[:, start : start + 2] > 0).all()
        assert (seen.evaluated.weights.total != 0).any(dim=0).nonzero().flatten().tolist() == [start, start + 1]


def test_a_step_without_density_is_not_trained(tmp_path):
    _, recorder = recorded(tmp_path, FLOW_GRPO, dynamics=CPS(), max_steps=1)
    assert not recorder.seen[0].inputs.response_mask[:, -1].any()
    assert recorder.seen[0].inputs.response_mask[:, :-1].all()


def test_trajectories_are_numbered_over_all_prompts_and_at_once_or_not(tmp_path):
    runs = [recorded(tmp_path, FLOW_GRPO, trajectories_at_once=count, seed=5) for count in (None, 3)]
    first, second = (recorder.seen[0].batch for _, recorder in runs)
    assert torch.equal(first.latents, second.latents)
    model, row = Points(), 6  # the third sample of the second prompt
    seed = derived_seed(derived_seed(5, 0), row)
    target = first.conditions["target"][first.prompt_of[row]]
    alone = sample_trajectories(model, {"target": target[None]}, uniform_times(5), points_data().dynamics, [seed])
    assert torch.equal(alone.latents[0], first.latents[row])


def test_the_first_ratios_are_one_and_the_mean_log_ratio_is_minus_the_divergence(tmp_path):
    options = {"group_size": 512, "epochs_per_rollout": 2}
    module = FlowModule(PointsSource(), GUARD, learning_rate=0.05)
    recorder = Recorder()
    fitted_points(tmp_path, module=module, data=points_data(**options), callbacks=[recorder], max_steps=2)
    first, second = recorder.seen
    assert (first.log_probs - first.inputs.old_log_probs).abs().max() < 1e-5
    assert first.inputs.divergence.abs().max() < 1e-10
    log_ratio = (second.log_probs - second.inputs.old_log_probs).double()
    shifted = log_ratio + second.inputs.divergence
    error = log_ratio.std(dim=0) / math.sqrt(len(log_ratio))
    assert (second.inputs.divergence.mean(dim=0) > 3 * error).any()  # so the bias could be seen
    assert (shifted.mean(dim=0).abs() < 4 * error).all()


def test_diagnostics_of_each_step(tmp_path):
    recorder = Recorder()
    data = points_data(epochs_per_rollout=2, window=StepWindow(2))
    run = fitted_points(tmp_path, GUARD, data, callbacks=[StepDiagnostics(), recorder], max_steps=2)
    seen, names = recorder.seen[-1], {name for name in run.metrics if name.startswith("steps/")}
    assert {name.split("/")[1] for name in names} == {"01", "02"}
    log_ratio = (seen.log_probs - seen.inputs.old_log_probs)[:, 0]
    divergence, scale = seen.inputs.divergence[:, 0], seen.inputs.scale[:, 0]
    weights = seen.evaluated.weights.total.abs()
    expected = {
        "log_ratio": log_ratio.mean(),
        "divergence": divergence.mean(),
        "log_ratio_norm": (scale * (log_ratio + divergence)).mean(),
        "clip_ratio": seen.evaluated.weights.clipped[:, 0].float().mean(),
        "weight": weights[:, 0].mean() / weights[:, :2].mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(run.metrics[f"steps/01/{name}"], value.float(), rtol=1e-4, atol=1e-9)


def test_a_step_outside_the_window_loses_its_metrics(tmp_path):
    data = points_data(window=StepWindow(2, every=1))
    metrics = fitted_points(tmp_path, GUARD, data, callbacks=[StepDiagnostics()], max_steps=2).metrics
    found = {name.split("/")[1]: value for name, value in metrics.items() if name.endswith("/weight")}
    assert found.keys() == {"01", "02", "03"}
    assert found["01"].isnan()
    torch.testing.assert_close(found["02"] + found["03"], torch.tensor(2.0))


def test_diagnostics_of_steps_need_steps(tmp_path, model_folder):
    with pytest.raises(TypeError, match="steps of RolloutBatch have no divergence; leave it out"):
        fitted(tmp_path, model_folder, callbacks=[StepDiagnostics()])


def test_an_objective_of_denoising_steps_is_refused_for_tokens_before_anything_is_sampled(tmp_path, model_folder):
    with pytest.raises(ValueError, match="`scale` is None, but RatioNorm reads it"):
        fitted(tmp_path, model_folder, objective=GUARD)


def test_a_reward_of_weight_zero_is_measured_on_held_out_examples_and_trains_nothing(tmp_path):
    both = {"reward": [closeness, height], "reward_weights": [1.0, 0.0], "validation": EXAMPLES}
    run, recorder = recorded(tmp_path, FLOW_GRPO, **both, max_steps=2)
    _, alone = recorded(tmp_path, FLOW_GRPO, max_steps=2)
    assert all(torch.equal(one[name], alone.gradients[0][name]) for one in recorder.gradients[:1] for name in one)
    model = Points()
    model.load_state_dict(run.module.model.state_dict())
    measured = run.trainer.validate(run.module, run.data, verbose=False)[0]
    assert {"val/reward_ode", "val/rewards/closeness_ode", "val/rewards/height_ode"} <= measured.keys()
    assert measured["val/reward_ode"] == measured["val/rewards/closeness_ode"]


@pytest.mark.parametrize("window", [None, StepWindow(2, every=1)], ids=["all", "window"])
def test_each_step_is_rewarded_for_the_sample_that_the_flow_leads_to(tmp_path, window):
    noted, recorder = NotedAdvantages(Clamped(StepValues())), Recorder()

    def positive(sample, example):
        return 3 + closeness(sample, example)

    data = points_data(reward=positive, advantages=noted, window=window, trajectories_at_once=7)
    run = fitted_points(tmp_path, data=data, callbacks=[recorder], max_steps=2)
    assert run.metrics["step_rewards/failed_ratio"] == 0
    for number, seen in enumerate(recorder.seen):
        model, batch, rollout = Points(), seen.batch, noted.steps[number]
        model.load_state_dict(recorder.weights[number])
        for row in range(16):
            target = batch.conditions["target"][batch.prompt_of[row], None]
            for step in range(5):
                x, time = batch.latents[row, step + 1, None], 1 - (step + 1) / 5
                sample = x - time * model(x, torch.tensor([time]), target)
                expected = 3 - abs(float(sample[0, 0]) - float(target))
                assert float(rollout.step_rewards[row, step]) == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(rollout.step_rewards[:, -1].float(), rollout.rewards.float())
        assert torch.equal(seen.inputs.advantages, torch.where(seen.inputs.response_mask, noted(rollout), 0).float())


def test_the_only_step_has_the_reward_of_the_sample(tmp_path):
    noted = NotedAdvantages(Clamped(StepValues()))
    recorded(
        tmp_path, FLOW_GRPO, reward=lambda sample, example: abs(height(sample, example)), steps=1, advantages=noted
    )
    torch.testing.assert_close(noted.steps[0].step_rewards.squeeze(-1), noted.steps[0].rewards)


@pytest.mark.parametrize("dynamics", [FlowSDE(), CPS()], ids=["flow_sde", "cps"])
def test_replayed_trajectories_keep_their_transitions_and_resume(tmp_path, dynamics):
    def run(folder, max_steps, ckpt_path=None):
        recorder = Recorder()
        trainer = {"callbacks": [recorder, RunCheckpoint(dirpath=str(folder), every_n_train_steps=1)]}
        module = FlowModule(PointsSource(), FLOW_GRPO, learning_rate=1e-9)  # ratios are those of numerical errors
        window, schemes = StepWindow(2, every=1), [Replay()]
        data = points_data(reward=side, group_size=2, window=window, schemes=schemes, dynamics=dynamics)
        trainer |= {"enable_checkpointing": True, "max_steps": max_steps, "ckpt_path": ckpt_path}
        fitted_points(folder, module=module, data=data, **trainer)
        return recorder.seen

    whole, replayed = run(tmp_path / "whole", 8), 0
    for number, seen in enumerate(whole):
        mask = seen.inputs.response_mask
        replayed += int((mask & ~StepWindow(2, every=1).mask(5, number % 4)).any(dim=-1).sum())
        assert torch.where(mask, seen.log_probs - seen.inputs.old_log_probs, 0).abs().max() < 1e-4
        assert seen.inputs.divergence.max() < 1e-8
    assert replayed > 4  # trajectories with the window of an earlier rollout
    run(tmp_path / "parts", 4)
    resumed = run(tmp_path / "parts", 8, tmp_path / "parts" / "last.ckpt")
    for one, other in zip(whole[4:], resumed, strict=True):
        assert torch.equal(one.batch.latents, other.batch.latents)
        assert torch.equal(one.batch.policy.old_log_probs, other.batch.policy.old_log_probs)


class Conditioned(Points):
    """Reads a tensor of the example, which JSON does not have."""

    def encode(self, examples):
        return {"target": torch.stack([example["embedding"] for example in examples]).mean(dim=-1)}


class ConditionedSource(PointsSource):
    def load(self):
        return Conditioned()


def test_replayed_trajectories_have_the_examples_of_the_data_set(tmp_path):
    recorder = Recorder()
    dataset = [{**example, "embedding": torch.full((2,), example["target"])} for example in EXAMPLES]
    data = points_data(dataset=dataset, reward=side, group_size=2, schemes=[Replay()])
    module = FlowModule(ConditionedSource(), FLOW_GRPO, learning_rate=1e-9)
    fitted_points(tmp_path, module=module, data=data, callbacks=[recorder], max_steps=4)
    for seen in recorder.seen:
        assert torch.where(seen.inputs.response_mask, seen.log_probs - seen.inputs.old_log_probs, 0).abs().max() < 1e-4


def test_step_rewards_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="which needs a reward of each step; only FlowDataModule has them"):
        small_data(advantages=Clamped(StepValues()))


class Reference(Callback):
    """Moves the policy away from the reference before the first step."""

    def on_train_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.model.bias += 0.2


def test_the_reference_is_the_initial_model(tmp_path):
    module = FlowModule(PointsSource(), FLOW_GRPO, learning_rate=1e-9)
    module.policy.keep_reference()
    recorder = Recorder()
    fitted_points(tmp_path, module=module, callbacks=[Reference(), recorder])
    seen = recorder.seen[0]
    rows = seen.batch.at(torch.arange(5))
    mean = rows.transition(Points()(rows.latents, rows.times, **rows.conditions)).mean
    shift = rows.of_velocity[:, None] * 0.2
    expected = (shift.square() / (2 * rows.scales[:, None].square())).mean(dim=-1)
    torch.testing.assert_close(seen.inputs.ref_divergence.flatten(), expected, rtol=1e-3, atol=1e-6)
    density = torch.distributions.Normal(mean, rows.scales[:, None]).log_prob(rows.next_latents).mean(dim=-1)
    torch.testing.assert_close(seen.inputs.ref_log_probs.flatten(), density.detach(), rtol=1e-4, atol=1e-5)


class Layer(Points):
    """Points by a layer in float32, which refuses latents of another precision."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 2, dtype=torch.float32)
        self.weight.requires_grad_(False)

    def forward(self, latents, times, target):
        features = torch.cat([latents, times[:, None], target[:, None]], dim=-1)
        return self.layer(features.to(self.bias.dtype)) + self.bias


class LayerSource(PointsSource):
    def load(self):
        return Layer()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_the_reference_has_the_precision_of_the_policy(tmp_path, precision):
    module, recorder = FlowModule(LayerSource(), FLOW_GRPO), Recorder()
    module.policy.keep_reference()
    fitted_points(tmp_path, module=module, callbacks=[recorder], precision=precision)
    seen = recorder.seen[0]
    assert torch.equal(seen.inputs.ref_log_probs, seen.log_probs)
    assert not seen.inputs.ref_divergence.any()


class Untrained(PointsSource):
    def load(self):
        return MixtureVelocity()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-mixed"])
def test_trains_and_evaluates_in_every_precision(tmp_path, precision):
    module = FlowModule(Untrained(), FLOW_GRPO, learning_rate=1e-4)
    examples = MixtureConditions(4)
    sizes = {"dataset": examples, "validation": examples, "reward": height}
    options = {"precision": precision, "val_check_interval": 1, "max_steps": 2}
    metrics = fitted_points(tmp_path, module=module, data=points_data(**sizes), **options).metrics
    assert math.isfinite(metrics["val/reward_ode"])
    assert metrics["kl_old"].abs() < 1e-6


def test_resumes_bit_for_bit(tmp_path):
    options = {"updates_per_rollout": 2, "epochs_per_rollout": 2, "window": StepWindow(2, every=1)}

    def run(folder, max_steps, ckpt_path=None):
        callbacks = [RunCheckpoint(dirpath=str(folder), every_n_train_steps=1)]
        trainer = {"callbacks": callbacks, "enable_checkpointing": True, "accumulate_grad_batches": 2}
        data, module = points_data(**options), FlowModule(PointsSource(), GUARD, learning_rate=0.01)
        return fitted_points(folder, data=data, module=module, max_steps=max_steps, ckpt_path=ckpt_path, **trainer)

    whole = run(tmp_path / "whole", 11).module.model.state_dict()
    run(tmp_path / "parts", 6)
    resumed = run(tmp_path / "parts", 11, tmp_path / "parts" / "last.ckpt").module.model.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def side(sample, example):
    return float(sample[0] > 0)


def test_what_may_change_on_a_resume_and_what_goes_with_the_number_of_steps(tmp_path):
    def run(max_steps, ckpt_path=None, accept=False, **options):
        callbacks = [RunCheckpoint(dirpath=str(tmp_path), every_n_train_steps=1)]
        trainer = {"callbacks": callbacks, "enable_checkpointing": True, "max_steps": max_steps, "ckpt_path": ckpt_path}
        module = FlowModule(PointsSource(), grpo(1e-4), learning_rate=1e-3, resume_with_changes=accept)
        shape = {"reward": side, "group_size": 2, "schemes": [Replay()], "updates_per_rollout": 2}
        return fitted_points(tmp_path, module=module, data=points_data(**shape, **options), **trainer).trainer

    run(3)
    last = tmp_path / "last.ckpt"
    free = {"steps_per_micro_batch": 10, "trajectories_at_once": 3, "evaluation_steps": 2}
    assert run(5, last, **free).global_step == 5
    for changed in ({"steps": 7}, {"dynamics": CPS()}, {"shift": 2.0}, {"window": StepWindow(3)}):
        with pytest.raises(ValueError, match=rf"another configuration: `data.{next(iter(changed))}.*` was .* and is "):
            run(6, last, **changed)
    assert run(12, last, accept=True, steps=7, shift=2.0, dynamics=CPS()).global_step == 12


def test_nothing_to_validate_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`validation` is None, so there is nothing to measure; pass held-out"):
        quiet_trainer(tmp_path).validate(FlowModule(PointsSource(), FLOW_GRPO), points_data())


def test_files_of_tokens_need_tokens(tmp_path):
    with pytest.raises(
        TypeError, match=r"has TokenWeightsFile, which writes the texts of tokens, .* trains FlowModule"
    ):
        fitted_points(tmp_path, callbacks=[TokenWeightsFile()])


class Adapted(Points):
    """Points whose frozen velocity is moved by what is trained."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.adapter, self.enabled = nn.Parameter(torch.zeros(2)), True

    def forward(self, latents, times, target):
        velocity = super().forward(latents, times, target)
        return velocity + self.adapter if self.enabled else velocity

    @contextmanager
    def initial_weights(self):
        self.enabled = False
        yield
        self.enabled = True


class AdaptedSource(PointsSource):
    def __init__(self, rank=1):
        self.rank, self.loaded = rank, 0

    @property
    def form(self):
        return {"rank": self.rank}

    def load(self):
        self.loaded += 1
        return Adapted()


class MovedAdapter(Callback):
    def on_train_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.model.adapter += 0.2


def test_a_model_that_can_take_its_initial_weights_is_its_own_reference(tmp_path):
    found = []
    for source, moved in ((AdaptedSource(), MovedAdapter()), (PointsSource(), Reference())):
        module = FlowModule(source, FLOW_GRPO, learning_rate=1e-9)
        module.policy.keep_reference()
        recorder = Recorder()
        fitted_points(tmp_path, module=module, callbacks=[moved, recorder])
        found.append((module.policy, recorder.seen[0].inputs))
    (own, one), (second, two) = found
    assert own.reference is None
    assert own.source.loaded == 1
    assert second.reference is not None
    assert own.model.enabled
    torch.testing.assert_close(one.ref_divergence, two.ref_divergence)
    torch.testing.assert_close(one.ref_log_probs, two.ref_log_probs)


def test_frozen_weights_are_left_out_of_checkpoints_and_another_form_is_refused(tmp_path):
    def run(max_steps, source, ckpt_path=None):
        callbacks = [RunCheckpoint(dirpath=str(tmp_path), every_n_train_steps=1)]
        trainer = {"callbacks": callbacks, "enable_checkpointing": True, "max_steps": max_steps, "ckpt_path": ckpt_path}
        return fitted_points(tmp_path, module=FlowModule(source, GUARD, learning_rate=0.01), **trainer).module.model

    whole = run(4, AdaptedSource())
    run(2, AdaptedSource())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert list(saved["state_dict"]) == ["model.adapter"]
    assert torch.equal(run(4, AdaptedSource(), tmp_path / "last.ckpt").adapter, whole.adapter)
    with pytest.raises(ValueError, match=r"the form {'rank': 3}, but those of the checkpoint {'rank': 1}; pass that"):
        run(6, AdaptedSource(3), tmp_path / "last.ckpt")


def test_a_batch_survives_a_checkpoint_and_another_split(tmp_path):
    _, recorder = recorded(tmp_path, FLOW_GRPO, max_steps=1, accumulate_grad_batches=3)
    states = [seen.batch.state_dict() for seen in recorder.seen]
    joined = DenoisingBatch.concatenated(states)
    assert len(joined.latents) == 16
    start = 0
    for seen in recorder.seen:
        batch = seen.batch
        rows = torch.arange(start, start + len(batch.latents))
        part = joined.select(rows)
        for name in ("latents", "means", "scales", "times"):
            assert torch.equal(getattr(part, name), getattr(batch, name))
        target = part.conditions["target"][part.prompt_of]
        assert torch.equal(target, batch.conditions["target"][batch.prompt_of])
        assert torch.equal(part.policy.old_log_probs, batch.policy.old_log_probs)
        start += len(batch.latents)


class Given(StepWeights):
    """These weights, whatever the times."""

    def __init__(self, *weights):
        self.weights = weights

    def __call__(self, times):
        return torch.tensor(self.weights)

    def __repr__(self):
        return f"Given{self.weights}"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": StepWindow(9)}, ValueError, "`size` is 9; pass at most the number of denoising steps, 5"),
        ({"schemes": [DraftRefinement()]}, ValueError, "has DraftRefinement, but samples have no texts; leave it out"),
        ({"steps": 0}, ValueError, "`steps` is 0"),
        ({"steps": 1, "dynamics": CPS()}, ValueError, r"adds no noise in step 1, so nothing .* pass more `steps`"),
        (
            {"dynamics": CPS(), "window": StepWindow(1)},
            ValueError,
            r"CPS\(noise=0.8\) adds no noise in step 5, .* pass a larger `size` of `window` StepWindow",
        ),
        (
            {"dynamics": CPS(), "steps": 2, "window": StepWindow(2), "step_weights": Given(0.0, 1.0)},
            ValueError,
            r"`step_weights` Given\(0.0, 1.0\) gave 0 for step 1, so nothing would be trained; pass weights above 0",
        ),
        (
            {"step_weights": Given(0.0, 0.0, 0.0, 0.0, 0.0)},
            ValueError,
            r"`step_weights` Given\(.*\) gave 0 for step 1, 2, 3, 4, 5, so nothing would be trained; pass weights",
        ),
        (
            {"step_weights": Given(0.0, 0.0, 0.0, 1.0, 1.0), "window": StepWindow(2)},
            ValueError,
            r"`step_weights` .* gave 0 for step 1, 2, .* pass weights above 0, or a larger `size` of `window` StepW",
        ),
        ({"dynamics": ODE()}, ValueError, r"`dynamics` ODE\(\) adds no noise in .*; pass stochastic dynamics, such as"),
        (
            {"dynamics": ODE(), "window": StepWindow(2)},
            ValueError,
            r"`dynamics` ODE\(\) .* in step 1, 2, .*; pass stoch",
        ),
        ({"steps": 2.5}, ValueError, "`steps` is 2.5; pass a whole number, 1 or more"),
        ({"steps_per_micro_batch": 2.5}, ValueError, "`steps_per_micro_batch` is 2.5; pass a whole number, 1 or more"),
        (
            {"step_weights": Given(1.0, 1.0)},
            ValueError,
            r"gave the shape \(2,\); return one weight for each of 5 steps",
        ),
        ({"dynamics": "sde"}, TypeError, "`dynamics` is 'sde'; pass an instance"),
        ({"step_weights": 2.0}, TypeError, "`step_weights` is 2.0; pass an instance"),
        ({"group_size": 1}, ValueError, "`group_size` is 1"),
        ({"trajectories_at_once": 0}, ValueError, "`trajectories_at_once` is 0"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        points_data(**options)


class Made(PointsSource):
    """Makes a model of points with some attributes changed."""

    def __init__(self, **changes):
        self.changes = changes

    def load(self):
        model = Points()
        for name, value in self.changes.items():
            setattr(model, name, value)
        return model


class Frozen(PointsSource):
    def load(self):
        return Points().requires_grad_(False)


class Linear(PointsSource):
    def load(self):
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            Linear(),
            TypeError,
            "`model` Linear made a Linear; return an instance of a subclass of lightning_modules.flow.Flow",
        ),
        (Frozen(), ValueError, "made a Points whose weights are all frozen; leave `requires_grad`"),
        (Made(latent_shape=None), ValueError, "`latent_shape` is None; set the shape of one sample"),
        (Made(latent_shape=()), ValueError, r"`latent_shape` is \(\); set the shape of one sample"),
        (Made(latent_shape=(2.0,)), ValueError, r"`latent_shape` is \(2.0,\); set the shape of one sample"),
        (Made(decode=lambda latents: [latents[0]]), ValueError, "`decode` of Points returned 1 samples of 16 latents"),
        (
            Made(encode=lambda examples: {"target": torch.zeros(1)}),
            ValueError,
            "`encode` of Points returned 1 rows of `target` for 4 examples; return one for each",
        ),
    ],
)
def test_what_a_model_lacks_is_named(tmp_path, source, error, message):
    with pytest.raises(error, match=message):
        fitted_points(tmp_path, module=FlowModule(source, FLOW_GRPO))


@pytest.mark.parametrize("name", ["dataset", "validation"])
def test_an_example_without_a_prompt_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f'`{name}`, prompt 1 .*no field "prompt"'):
        points_data(**{name: [EXAMPLES[0], {"target": 1.0}]})


def test_modules_are_not_mixed(tmp_path, model_folder):
    with pytest.raises(TypeError, match="has no `policy` of the class FlowPolicy; pass a FlowModule"):
        fitted(tmp_path, model_folder, data=points_data())
    with pytest.raises(TypeError, match="`model` is 'points'; pass an instance of a subclass"):
        FlowModule("points", grpo())
