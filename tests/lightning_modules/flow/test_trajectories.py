"""Sampled trajectories: what they record, whose noise they use, and windows of stochastic steps."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_modules.flow import (
    CPS,
    ODE,
    DanceSDE,
    FlowModel,
    FlowSDE,
    StepWindow,
    sample_trajectories,
    uniform_times,
)
from lightning_modules.flow.policy import FlowPolicy
from tests.lightning_modules.flow.points import PointsSource

SEEDS = [11, 12, 13]
TIMES = uniform_times(5)


class Elementwise(FlowModel):
    """Velocity of each latent dimension by itself, so that a row is the same in every batch."""

    latent_shape = (2, 3)

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))

    def encode(self, examples):
        return {"target": torch.tensor([example["target"] for example in examples])}

    def forward(self, latents, times, target):
        return self.slope * latents + (times - target)[:, None, None]

    def decode(self, latents):
        return list(latents.cpu())


@pytest.fixture
def model():
    return Elementwise()


@pytest.fixture
def conditions(model):
    return model.encode([{"target": 1.0}, {"target": -2.0}, {"target": 0.5}])


@pytest.mark.parametrize(
    "dynamics", [FlowSDE(), DanceSDE(), CPS(), ODE()], ids=lambda dynamics: type(dynamics).__name__
)
def test_records_are_those_of_the_transitions(model, conditions, dynamics):
    found = sample_trajectories(model, conditions, TIMES, dynamics, SEEDS)
    assert found.latents.shape == (3, 6, 2, 3)
    assert found.means.shape == (3, 5, 2, 3)
    assert not found.latents.requires_grad
    for step in range(5):
        time, next_time = TIMES[step].expand(3), TIMES[step + 1].expand(3)
        latents = found.latents[:, step]
        transition = dynamics.transition(latents, model(latents, time, **conditions), time, next_time)
        assert torch.equal(transition.mean, found.means[:, step])
        assert torch.equal(transition.scale, found.scales[:, step])
        assert torch.equal(transition.log_prob(found.latents[:, step + 1]), found.log_probs[:, step])
        assert torch.equal(transition.is_stochastic, found.mask[:, step])
    assert torch.equal(found.final_latents, found.latents[:, 5])


def test_the_last_step_that_replaces_noise_is_not_trained(model, conditions):
    found = sample_trajectories(model, conditions, TIMES, CPS(), SEEDS)
    assert found.mask.tolist() == [[True] * 4 + [False]] * 3
    assert found.log_probs[:, -1].tolist() == [0, 0, 0]
    assert found.log_probs.isfinite().all()


def test_the_initial_latents_and_the_noise_are_standard_normal(model):
    conditions = {"target": torch.zeros(4000)}
    found = sample_trajectories(model, conditions, uniform_times(1), FlowSDE(), range(4000))
    noise = (found.latents[:, 1] - found.means[:, 0]) / found.scales[:, 0, None, None]
    for values in (found.latents[:, 0], noise):
        assert values.mean().item() == pytest.approx(0, abs=0.03)
        assert values.std().item() == pytest.approx(1, abs=0.03)
    assert (found.latents[:, 0] * noise).mean().item() == pytest.approx(0, abs=0.03)


def test_a_trajectory_does_not_depend_on_its_batch(model, conditions):
    together = sample_trajectories(model, conditions, TIMES, FlowSDE(), SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = sample_trajectories(model, {"target": conditions["target"][[row]]}, TIMES, FlowSDE(), [seed])
        assert torch.equal(alone.latents[0], together.latents[row])
    assert not torch.equal(together.latents[0, 0], together.latents[1, 0])


def test_steps_outside_the_window_are_those_of_the_ode(model, conditions):
    window = torch.tensor([False, True, True, False, False])
    found = sample_trajectories(model, conditions, TIMES, FlowSDE(), SEEDS, stochastic=window)
    assert found.mask.tolist() == [window.tolist()] * 3
    assert torch.equal(found.latents[:, 1:][:, ~window], found.means[:, ~window])
    assert (found.log_probs[:, ~window] == 0).all()
    assert (found.log_probs[:, window] != 0).all()


def test_the_noise_of_a_step_does_not_depend_on_the_window(model, conditions):
    noises = []
    for stochastic in (None, torch.tensor([False, False, True, False, False])):
        found = sample_trajectories(model, conditions, TIMES, FlowSDE(), SEEDS, stochastic=stochastic)
        noises.append((found.latents[:, 3] - found.means[:, 2]) / found.scales[:, 2, None, None])
    torch.testing.assert_close(*noises)


def test_the_random_state_of_the_process_is_not_used(model, conditions):
    state = torch.get_rng_state()
    sample_trajectories(model, conditions, TIMES, FlowSDE(), SEEDS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "times",
    [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5], [1.5, 0.0], [1.0, -0.5], [[1.0, 0.0], [0.5, 0.0]], [1.0, float("nan"), 0.0]],
)
def test_times_that_do_not_decrease_from_1_to_0_are_refused(model, conditions, times):
    with pytest.raises(ValueError, match=r"`times` is \[.*\]; pass two or more decreasing times between 1 and 0"):
        sample_trajectories(model, conditions, torch.tensor(times), ODE(), SEEDS)


def test_shapes_that_disagree_are_refused(model, conditions):
    with pytest.raises(ValueError, match=r"the condition `target` has 3 rows, but there are 2 `seeds`; pass one each"):
        sample_trajectories(model, conditions, TIMES, ODE(), SEEDS[:2])
    with pytest.raises(ValueError, match=r"`stochastic` has shape \(4,\); pass one element for each of 5 steps"):
        sample_trajectories(model, conditions, TIMES, ODE(), SEEDS, stochastic=torch.ones(4, dtype=torch.bool))


def starts(window, steps, rollouts):
    return [window.mask(steps, rollout).int().argmax().item() for rollout in rollouts]


def test_a_window_slides_and_restarts():
    window = StepWindow(size=2, stride=1, every=3)
    assert window.mask(4, 3).tolist() == [False, True, True, False]
    assert starts(window, 4, range(12)) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert starts(StepWindow(size=4, stride=4, every=1), 10, range(5)) == [0, 4, 6, 0, 4]
    assert starts(StepWindow(size=4, stride=4, every=1), 4, range(2)) == [0, 0]


@given(st.data())
def test_every_step_is_in_the_window_once_in_a_while(data):
    steps = data.draw(st.integers(1, 12))
    size = data.draw(st.integers(1, steps))
    window = StepWindow(size, stride=data.draw(st.integers(1, size)), every=data.draw(st.integers(1, 3)))
    masks = torch.stack([window.mask(steps, rollout) for rollout in range(steps * window.every)])
    assert (masks.sum(dim=1) == size).all()
    assert masks.any(dim=0).all()


def test_windows_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`every` is 0; pass a whole number, 1 or more"):
        StepWindow(every=0)
    with pytest.raises(ValueError, match=r"`size` is 2.5; pass a whole number, 1 or more"):
        StepWindow(2.5)
    with pytest.raises(ValueError, match=r"`stride` is 0.5; pass a whole number, 1 or more"):
        StepWindow(2, stride=0.5)
    with pytest.raises(ValueError, match=r"`steps` is 2.5; pass a whole number, 1 or more"):
        uniform_times(2.5)
    with pytest.raises(ValueError, match="`size` is 4; pass at most the number of denoising steps, 3"):
        StepWindow().mask(3, 0)


class DropsOut(Elementwise):
    """A model with dropout, in training mode as a new module is."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, latents, times, target):
        return self.drop(super().forward(latents, times, target))


class DropsOutSource(PointsSource):
    def load(self):
        return DropsOut()


def test_no_model_of_a_policy_drops_units_out(conditions):
    policy = FlowPolicy(DropsOutSource())
    policy.load(nullcontext)
    policy.keep_reference()
    for model in (policy.model, policy.reference):
        found = [sample_trajectories(model, conditions, TIMES, FlowSDE(), SEEDS).latents for _ in range(2)]
        assert torch.equal(*found)
