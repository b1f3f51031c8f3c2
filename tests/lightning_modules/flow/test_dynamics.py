"""Dynamics: steps worked by hand, sampled steps against the density, and marginals of many steps."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.flow import CPS, ODE, DanceSDE, FlowSDE, uniform_times

STOCHASTIC = [FlowSDE(), DanceSDE(), CPS()]


def doubles(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dynamics", "time", "next_time", "mean", "scale"),
    [
        (FlowSDE(0.7), 0.5, 0.4, 0.88875, 0.2213594362),
        (FlowSDE(0.7), 1.0, 0.9, 0.705, 0.7),  # sigma^2 = 0.49 / (1 - 0.9)
        (FlowSDE(0.7), 1.0, 0.0, 0.255, 0.7),
        (DanceSDE(0.3), 0.5, 0.4, 0.93875, 0.0948683298),
        (DanceSDE(0.3), 1.0, 0.9, 0.9455, 0.0948683298),
        (CPS(0.5), 0.5, 0.4, 0.8035533906, 0.2828427125),
        (CPS(0.5), 0.5, 0.0, 0.75, 0.0),
        (ODE(), 0.5, 0.4, 0.95, 0.0),
    ],
)
def test_steps_worked_by_hand(dynamics, time, next_time, mean, scale):
    """Latents 1 and velocity 0.5."""
    found = dynamics.transition(doubles([1.0]), doubles([0.5]), doubles(time), doubles(next_time))
    torch.testing.assert_close(found.mean, doubles([mean]), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.scale, doubles(scale), atol=1e-9, rtol=0)


@given(
    st.sampled_from([*STOCHASTIC, ODE()]),
    st.floats(0.01, 1),
    st.floats(0, 0.99),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_steps_in_terms_of_predicted_sample_and_noise(dynamics, time, fraction, latents, velocity):
    """All but CPS shift the mean of the Euler step along the score; CPS keeps sample and noise in their shares."""
    next_time = time * fraction
    found = dynamics.transition(doubles([latents]), doubles([velocity]), doubles(time), doubles(next_time))
    sample, noise = latents - time * velocity, latents + (1 - time) * velocity
    scale = found.scale.item()
    if isinstance(dynamics, CPS):
        expected = (1 - next_time) * sample + math.sqrt(max(next_time**2 - scale**2, 0)) * noise
    else:
        # The Langevin part: half of its variance, times the score.
        expected = latents - (time - next_time) * velocity - scale**2 / 2 * noise / time
    assert found.mean.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert bool(found.is_stochastic) == (dynamics != ODE() and (next_time > 0 or not isinstance(dynamics, CPS)))


@pytest.mark.parametrize("dynamics", STOCHASTIC, ids=lambda dynamics: type(dynamics).__name__)
@pytest.mark.parametrize(("time", "next_time"), [(1.0, 0.9), (0.5, 0.3), (0.1, 0.02)])
def test_sampled_steps_have_the_density(dynamics, time, next_time):
    """Frequencies in bins against the integral of the density over each bin."""
    rows = 100_000

    def transition(count):
        times = torch.full((2, count), time, dtype=torch.float64)
        latents, velocity = torch.full((2, count, 1), 0.8, dtype=torch.float64) * doubles(1, -0.5).reshape(2, 1, 1)
        return dynamics.transition(latents, velocity, times[0], torch.full_like(times[1], next_time))

    generator = torch.Generator().manual_seed(0)
    sampled = transition(rows).next_latents(torch.randn(rows, 1, dtype=torch.float64, generator=generator))[:, 0]
    grid = torch.linspace(sampled.min().item(), sampled.max().item(), 20_001, dtype=torch.float64)
    density = transition(len(grid)).log_prob(grid[:, None]).exp()
    mass = torch.cumulative_trapezoid(density, grid)[999::1000].diff(prepend=doubles(0)[0:1])
    counts = torch.histogram(sampled, bins=grid[::1000].contiguous()).hist
    expected = rows * mass
    filled = expected > 5
    chi_squared = ((counts - expected)[filled] ** 2 / expected[filled]).sum().item()
    assert filled.sum() > 8
    assert chi_squared < filled.sum() + 4 * math.sqrt(2 * filled.sum())


def exact_velocity(latents, time, mean, spread):
    """The velocity of the flow to a normal target, the expectation of noise minus sample."""
    variance = (1 - time) ** 2 * spread**2 + time**2
    return -mean + (time - (1 - time) * spread**2) / variance * (latents - (1 - time) * mean)


def moments_of_samples(dynamics, steps, mean, spread):
    """Mean and variance after all steps; steps are linear, so both follow from two points, without sampling."""
    center, variance = 0.0, 1.0
    times = uniform_times(steps)
    for time, next_time in pairwise(times.tolist()):
        points = doubles([center], [center + 1])
        found = dynamics.transition(
            points, exact_velocity(points, time, mean, spread), doubles(time, time), doubles(next_time, next_time)
        )
        center, slope = found.mean[0].item(), (found.mean[1] - found.mean[0]).item()
        variance = slope**2 * variance + found.scale[0].item() ** 2
    return center, variance


@pytest.mark.parametrize("dynamics", [ODE(), FlowSDE(), FlowSDE(1.2), DanceSDE(), DanceSDE(1.0), CPS()], ids=str)
def test_the_mean_of_a_normal_target_is_reached(dynamics):
    for steps in (1, 10, 100):
        assert moments_of_samples(dynamics, steps, 1.5, 0.6)[0] == pytest.approx(1.5, abs=1e-9)


@pytest.mark.parametrize("dynamics", [ODE(), FlowSDE(1.2), DanceSDE(), DanceSDE(1.0)], ids=str)
@pytest.mark.parametrize("spread", [0.6, 1.0, 2.0])
def test_the_variance_of_a_normal_target_is_reached_to_first_order(dynamics, spread):
    coarse, fine = (moments_of_samples(dynamics, steps, 1.5, spread)[1] / spread**2 - 1 for steps in (300, 3000))
    assert abs(fine) < 2e-3
    assert abs(fine) < 0.2 * abs(coarse)


def test_the_first_step_of_the_flow_sde_slows_its_convergence():
    """The variance of that step is a^2 however many steps there are."""
    errors = [moments_of_samples(FlowSDE(), steps, 1.5, 1.0)[1] - 1 for steps in (10, 1000, 4000)]
    assert errors == pytest.approx([-0.0687, 0.0057, 0.0033], abs=1e-4)


def test_a_single_point_is_reached_exactly_where_sample_and_noise_keep_their_shares():
    for dynamics in (ODE(), CPS(), CPS(0.2)):
        for steps in (1, 3, 10):
            assert moments_of_samples(dynamics, steps, 1.5, 0.0) == pytest.approx((1.5, 0), abs=1e-12)


def test_replaced_noise_narrows_a_target_with_spread():
    """Also in the limit of many steps; with less noise it is narrowed less."""
    variances = [moments_of_samples(dynamics, 4000, 0.0, 1.0)[1] for dynamics in (CPS(0.8), CPS(0.2), ODE())]
    assert variances == pytest.approx([0.653, 0.975, 0.999], abs=1e-3)
    assert moments_of_samples(CPS(), 10, 0.0, 1.0)[1] == pytest.approx(0.524, abs=1e-3)


@pytest.mark.parametrize("dynamics", [ODE(), FlowSDE(), DanceSDE()], ids=lambda dynamics: type(dynamics).__name__)
def test_samples_of_two_normal_modes_have_the_moments_of_the_target(dynamics):
    """The exact velocity of an even mixture of N(-1, 0.3^2) and N(1, 0.3^2)."""
    rows, generator = 40_000, torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 1, generator=generator)
    times = uniform_times(200).float()
    for time, next_time in pairwise(times):
        variance = (1 - time) ** 2 * 0.3**2 + time**2
        modes = torch.tensor([-1.0, 1.0])
        weights = (-((latents - (1 - time) * modes) ** 2) / (2 * variance)).softmax(dim=1)
        velocities = torch.stack([exact_velocity(latents[:, 0], time, mode, 0.3) for mode in (-1.0, 1.0)], dim=1)
        velocity = (weights * velocities).sum(dim=1, keepdim=True)
        step = dynamics.transition(latents, velocity, time.expand(rows), next_time.expand(rows))
        latents = step.next_latents(torch.randn(rows, 1, generator=generator))
    moments = [latents.double().pow(power).mean().item() for power in (1, 2, 4)]
    # E x^2 = 1 + 0.09; E x^4 = 1 + 6 * 0.09 + 3 * 0.0081.
    assert moments == pytest.approx([0, 1.09, 1.5643], abs=0.03)


def test_half_precision_is_raised_to_float32():
    latents = torch.ones(1, 2, dtype=torch.bfloat16)
    found = FlowSDE().transition(latents, latents / 3, doubles(0.5), doubles(0.4))
    assert found.mean.dtype == found.scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("dynamics", "noise", "message"),
    [
        (FlowSDE, 0.0, "`noise` is 0.0; pass a positive number"),
        (DanceSDE, -1.0, "`noise` is -1.0; pass a positive number"),
        (CPS, 1.5, "`noise` is 1.5; pass a fraction of a right angle, at most 1"),
    ],
)
def test_noise_out_of_range_is_refused(dynamics, noise, message):
    with pytest.raises(ValueError, match=message):
        dynamics(noise)


def test_shapes_that_disagree_are_refused():
    latents, time = torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match=r"`velocity` has shape \(3, 1\), but `latents` has shape \(3, 2\); pass"):
        ODE().transition(latents, latents[:, :1], time, time / 2)
    with pytest.raises(ValueError, match=r"`next_time` has shape \(2,\), but `latents` has batch=3; pass one time"):
        ODE().transition(latents, latents, time, time[:2] / 2)


def test_times_are_uniform_and_then_shifted():
    assert uniform_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert uniform_times(4, shift=3.0).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert uniform_times(1).tolist() == [1, 0]
    with pytest.raises(ValueError, match="`steps` is 0; pass a whole number, 1 or more"):
        uniform_times(0)
    with pytest.raises(ValueError, match=r"`shift` is -1.0; pass a positive number"):
        uniform_times(4, shift=-1.0)
