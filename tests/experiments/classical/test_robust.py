"""Uncertain transitions: worst cases by a grid and by the dual, projections, and mirror descent at the optimum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.robust import (
    BROKEN,
    NOMINAL,
    Method,
    optimize,
    worst_cases,
)
from experiments.classical.shared.uncertainty import Interval, KLBall, divergence, kernel_step, worst_values

seeds, radii = st.integers(0, 1_000), st.sampled_from([0.01, 0.05, 0.3])


def nominal_and_values(seed, states=3):
    generator = torch.Generator().manual_seed(seed)
    nominal = (0.5 * torch.randn(states, generator=generator, dtype=torch.float64)).softmax(dim=-1)
    return nominal, torch.randn(states, generator=generator, dtype=torch.float64)


def simplex(points=400):
    """Distributions over three states on a grid."""
    one, two = torch.meshgrid(*(2 * [torch.linspace(0, 1, points + 1, dtype=torch.float64)]), indexing="ij")
    grid = torch.stack([one, two, 1 - one - two], dim=-1).flatten(0, 1)
    return grid[grid[:, 2] >= 0]


@given(seeds, radii)
def test_the_worst_case_of_a_kl_ball_is_that_of_the_dual(seed, radius):
    """The smallest value over beta of beta kappa + beta log E exp(V / beta)."""
    nominal, values = nominal_and_values(seed)
    worst = KLBall(radius).worst(nominal, values)
    beta = torch.logspace(-3, 3, 60_001, dtype=torch.float64).unsqueeze(-1)
    dual = beta.squeeze(-1) * (radius + (nominal.log() + values / beta).logsumexp(dim=-1))
    assert float(worst @ values) == pytest.approx(float(dual.min()), abs=1e-6)
    assert divergence(worst, nominal) <= radius + 1e-9


@given(seeds, radii, st.booleans())
def test_the_worst_case_is_that_of_a_grid(seed, radius, ball):
    nominal, values = nominal_and_values(seed)
    uncertainty = KLBall(radius) if ball else Interval(radius)
    grid = simplex()
    outside = divergence(grid, nominal) > radius if ball else ((grid - nominal).abs() > radius + 1e-12).any(dim=-1)
    best = (grid[~outside] @ values).max() if (~outside).any() else -torch.inf
    found = uncertainty.worst(nominal, values)
    assert found @ values >= best - 1e-9
    assert found @ values <= best + 0.02
    assert found.sum().item() == pytest.approx(1)
    if not ball:
        assert ((found - nominal).abs() <= radius + 1e-12).all()


@given(seeds, radii, st.booleans())
def test_projections_are_the_closest_of_a_grid_and_leave_what_is_inside(seed, radius, ball):
    nominal, values = nominal_and_values(seed)
    uncertainty = KLBall(radius) if ball else Interval(radius)
    kernel = (2 * values).softmax(dim=-1)
    found = uncertainty.project(nominal, kernel)
    grid = simplex(200)
    inside = divergence(grid, nominal) <= radius if ball else ((grid - nominal).abs() <= radius).all(dim=-1)
    assert found.sum().item() == pytest.approx(1)
    assert (divergence(found, kernel) <= divergence(grid[inside], kernel) + 1e-9).all()
    torch.testing.assert_close(uncertainty.project(nominal, found), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("uncertainty", [KLBall(0.02), Interval(0.05)], ids=["kl", "interval"])
def test_mirror_ascent_of_the_kernel_reaches_the_worst_case(uncertainty):
    policy = torch.tensor([[0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)
    values, kernel = worst_values(NOMINAL, uncertainty, policy, NOMINAL.rewards)
    # The fixed point of the robust backup.
    backup = (policy * (NOMINAL.rewards + 0.9 * uncertainty.worst(NOMINAL.transitions, values) @ values)).sum(dim=-1)
    torch.testing.assert_close(backup, values, atol=1e-9, rtol=0)
    moved = NOMINAL.transitions
    for _ in range(300):
        moved = kernel_step(NOMINAL, uncertainty, moved, policy, NOMINAL.rewards, 0.3)
    torch.testing.assert_close(moved, kernel, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("uncertainty", "points"), [(Interval(0.05), 201), (KLBall(0.02), 51)], ids=["interval", "kl"])
def test_the_robust_policy_is_the_best_of_a_grid_and_the_others_violate(uncertainty, points):
    robust, plain, constrained = (
        optimize(method, 400)[0][-1] for method in (Method(uncertainty), Method(None, constrained=False), Method(None))
    )
    costs, violations = worst_cases(uncertainty, [robust, plain, constrained])
    assert violations[0].item() == pytest.approx(0, abs=1e-3)
    assert (violations[1:] > 0.4).all()
    assert NOMINAL.expected(NOMINAL.values(constrained, BROKEN)).item() == pytest.approx(0, abs=1e-3)
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    first, second = torch.meshgrid(shares, shares, indexing="ij")
    grid = torch.stack([torch.stack([x, 1 - x], dim=-1) for x in (first.flatten(), second.flatten())], dim=-2)
    cost, violation = worst_cases(uncertainty, list(grid))
    best = cost[violation <= 1e-9].min()
    assert costs[0].item() == pytest.approx(best.item(), abs=0.01)


def test_entropy_makes_the_multiplier_converge_linearly():
    _, multipliers = optimize(Method(Interval(0.05)), 900)
    distance = [max(abs(value - multipliers[-1]) for value in multipliers[at : at + 100]) for at in (100, 300, 500)]
    assert distance[1] < distance[0] / 10
    assert distance[2] < distance[1] / 10
