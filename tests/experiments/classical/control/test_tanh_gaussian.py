"""Tanh-Gaussian policies against numeric integration, and what an improvement trains."""

import math

import pytest
import torch
from torch import nn

from experiments.classical.control.cross_entropy import CrossEntropy
from experiments.classical.control.tanh_gaussian import (
    TanhGaussian,
    by_cross_entropy,
    by_gradient,
    sampled,
    tanh_normal,
)

ACTIONS = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[1:-1]


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.5), (0.7, 0.3), (-0.4, 0.9)])
def test_the_density_integrates_to_the_distribution(mean, deviation):
    """To 1, and below each action to the normal distribution below its inverse hyperbolic tangent."""
    policy = tanh_normal(torch.tensor([mean]).double(), torch.tensor([deviation]).double())
    density = policy.log_prob(ACTIONS.unsqueeze(-1)).exp()
    below = torch.cumulative_trapezoid(density, ACTIONS)
    assert below[-1].item() == pytest.approx(1, abs=1e-5)
    for action in (-0.5, 0.1, 0.8):
        number = int((action > ACTIONS).sum()) - 1
        expected = 0.5 * (1 + math.erf((math.atanh(action) - mean) / deviation / math.sqrt(2)))
        assert below[number].item() == pytest.approx(expected, abs=1e-4)


def test_log_probs_of_several_coordinates_add_up():
    torch.manual_seed(0)
    means, deviations = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1
    actions, log_probs = sampled(means, deviations)
    apart = [tanh_normal(means[:, [k]], deviations[:, [k]]).log_prob(actions[:, [k]]) for k in range(3)]
    torch.testing.assert_close(log_probs, torch.stack(apart).sum(dim=0), rtol=1e-6, atol=1e-6)


def test_log_probs_are_finite_where_the_tanh_saturates():
    _, log_probs = sampled(torch.full((4, 1), 20.0), torch.ones(4, 1))
    assert log_probs.isfinite().all()


def table(values):
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    return layer


def policy_of_two_states():
    torch.manual_seed(0)
    policy = TanhGaussian(table([0.1, -0.3]), table([-1.0, -2.0]), temperature=0.1)
    return (
        policy,
        torch.eye(2),
        [torch.optim.SGD(part.parameters(), 0.5) for part in (policy.mean, policy.log_deviation)],
    )


def quality(states, actions):
    return -(actions.squeeze(-1) - 0.5).square()


def test_the_search_trains_the_mean_alone():
    """One step of size 0.5 on the mean squared error of two states moves each mean halfway to what was found."""
    policy, states, optimizers = policy_of_two_states()
    search = CrossEntropy(iterations=1, candidates=4, elites=2)
    found = torch.tensor([[1.1], [0.7]])
    object.__setattr__(search, "maximum", lambda score, start: found)
    by_cross_entropy(search)(policy, states, quality, *optimizers)
    torch.testing.assert_close(policy.mean.weight.data, torch.tensor([[0.1 + 0.5 * 1.0, -0.3 + 0.5 * 1.0]]))


def test_the_deviation_follows_the_gradient_in_both():
    """The gradient of the deviation at a given mean, by central differences with the same noise."""
    policy, states, optimizers = policy_of_two_states()
    before = policy.log_deviation.weight.data.clone()

    def objective(log_deviation):
        torch.manual_seed(3)
        values = policy.soft_values(states, policy.mean(states), log_deviation.T.exp(), quality)
        return values.mean().item()

    slopes = []
    for state in range(2):
        shift = torch.zeros(1, 2)
        shift[0, state] = 1e-2
        slopes.append((objective(before + shift) - objective(before - shift)) / 2e-2)
    torch.manual_seed(3)
    by_gradient(policy, states, quality, *optimizers)
    moved = (policy.log_deviation.weight.data - before).flatten() / 0.5
    torch.testing.assert_close(moved, torch.tensor(slopes), rtol=2e-3, atol=2e-4)


def test_the_score_of_a_candidate_is_quality_minus_its_weighted_log_prob():
    policy, states, _ = policy_of_two_states()
    scores = []
    search = CrossEntropy(iterations=1, candidates=4, elites=2)
    candidates = torch.randn(4, 2, 1)

    def maximum(score, start):
        torch.manual_seed(5)
        scores.append(score(candidates))
        return start

    object.__setattr__(search, "maximum", maximum)
    by_cross_entropy(search)(policy, states, quality, *(torch.optim.SGD(policy.parameters(), 0.0) for _ in range(2)))
    torch.manual_seed(5)
    deviations = policy.deviation(states).detach()
    noise = torch.normal(torch.zeros(4, 2, 1), torch.ones(4, 2, 1))
    before = candidates + deviations * noise
    normal = -0.5 * noise.square() - deviations.log() - 0.5 * math.log(2 * math.pi)
    log_probs = (normal - (1 - before.tanh().square()).log()).squeeze(-1)
    expected = quality(None, before.tanh()) - 0.1 * log_probs
    torch.testing.assert_close(scores[0], expected, rtol=1e-4, atol=1e-5)


def test_deviations_are_bounded():
    policy = TanhGaussian(table([0.0, 0.0]), table([-50.0, 50.0]), temperature=0.1)
    torch.testing.assert_close(policy.deviation(torch.eye(2)).flatten(), torch.tensor([math.exp(-5), math.exp(2)]))
