"""The Gaussian transition: its density, its divergence, their relation, and deterministic steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.flow import Transition


def doubles(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.fixture
def example():
    """The policy moved by (0.1, -0.05) from 0; scale 0.5, noise (0.3, -1.2)."""
    old = Transition(doubles([0.0, 0.0]), doubles(0.5))
    new = Transition(doubles([0.1, -0.05]), doubles(0.5))
    return old, new, old.next_latents(doubles([0.3, -1.2]))


def test_example_worked_by_hand(example):
    old, new, next_latents = example
    torch.testing.assert_close(next_latents, doubles([0.15, -0.6]))
    torch.testing.assert_close(new.log_prob(next_latents) - old.log_prob(next_latents), doubles(0.0775))
    torch.testing.assert_close(new.divergence(old.mean), doubles(0.0125))
    torch.testing.assert_close(old.divergence(new.mean), doubles(0.0125))


def test_log_prob_is_the_mean_of_normal_log_densities():
    generator = torch.Generator().manual_seed(0)
    mean, latents = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=generator)
    scale = doubles(0.1, 1.0, 3.0)
    expected = torch.distributions.Normal(mean, scale.reshape(3, 1, 1, 1)).log_prob(latents).mean(dim=(1, 2, 3))
    torch.testing.assert_close(Transition(mean, scale).log_prob(latents), expected)


@pytest.mark.parametrize("scale", [0.05, 0.7, 4.0])
def test_the_density_of_one_dimension_has_the_moments_of_the_transition(scale):
    grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64)[:, None]
    transition = Transition(torch.full_like(grid, 0.3), torch.full_like(grid[:, 0], scale))
    density = transition.log_prob(grid).exp()
    moments = [torch.trapezoid(density * grid[:, 0] ** power, grid[:, 0]).item() for power in range(3)]
    assert moments == pytest.approx([1, 0.3, 0.09 + scale**2], abs=1e-9)


def test_the_density_of_two_dimensions_is_normalized():
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    transition = Transition(doubles(0.3, -0.2).expand_as(grid), torch.full_like(grid[:, 0], 0.6))
    total = (2 * transition.log_prob(grid)).exp().sum() * (axis[1] - axis[0]) ** 2  # a mean over two dimensions
    assert total.item() == pytest.approx(1, abs=1e-9)


numbers = st.floats(-3, 3)


@given(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5),
    st.floats(0.01, 5),
)
def test_a_log_ratio_is_minus_the_divergence_minus_the_shift_times_the_noise(dimensions, scale):
    old_mean, new_mean, noise = doubles(*dimensions).T[:, None]
    old, new = (Transition(mean, doubles(scale)) for mean in (old_mean, new_mean))
    next_latents = old.next_latents(noise)
    log_ratio = new.log_prob(next_latents) - old.log_prob(next_latents)
    shift = old_mean - new_mean
    expected = -new.divergence(old_mean) - (shift * noise).mean(dim=1) / scale
    size = 1 + new.divergence(old_mean) + noise.square().mean()
    torch.testing.assert_close(log_ratio / size, expected / size, rtol=0, atol=1e-10)


def test_the_expected_log_ratio_under_the_old_policy_is_minus_the_divergence():
    rows, generator = 200_000, torch.Generator().manual_seed(1)
    old = Transition(torch.zeros(rows, 3), torch.full((rows,), 0.5))
    new = Transition(doubles(0.3, -0.1, 0.2).float().expand(rows, 3), old.scale)
    next_latents = old.next_latents(torch.randn(rows, 3, generator=generator))
    log_ratios = (new.log_prob(next_latents) - old.log_prob(next_latents)).double()
    half_width = 4 * log_ratios.std() / math.sqrt(rows)
    divergence = new.divergence(old.mean)[0]
    assert divergence.item() == pytest.approx((0.09 + 0.01 + 0.04) / 3 / 0.5)
    assert abs(log_ratios.mean() + divergence) < half_width < 0.1 * divergence


def test_a_deterministic_step_has_no_density_and_no_gradient():
    mean = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    scale = torch.tensor([0.0, 0.5], requires_grad=True)
    transition = Transition(mean, scale)
    latents = torch.tensor([[1.0, 2.5], [1.0, 2.5]])
    log_probs, divergences = transition.log_prob(latents), transition.divergence(latents)
    assert transition.is_stochastic.tolist() == [False, True]
    assert log_probs[0] == divergences[0] == 0
    assert torch.equal(transition.next_latents(torch.ones(2, 2))[0], mean[0])
    (log_probs.sum() + divergences.sum()).backward()
    assert mean.grad[0].tolist() == [0, 0]
    assert scale.grad[0] == 0
    assert mean.grad.isfinite().all()
    assert scale.grad.isfinite().all()


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"`scale` has shape \(2,\), but `mean` has shape \(3, 2\); pass one number"):
        Transition(torch.zeros(3, 2), torch.ones(2))
