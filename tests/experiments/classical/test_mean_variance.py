"""Mean minus variance of the average reward: difference formula, monotone iteration, deterministic optimum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.mean_variance import Evaluated, deterministic, difference, improved
from experiments.classical.shared.mdp import MDP, one_hot, random_mdp

seeds, weights = st.integers(0, 10_000), st.floats(0, 5)


def random_policy(states, actions, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(states, actions, generator=generator, dtype=torch.float64).softmax(dim=-1)


@given(seeds, weights)
def test_the_difference_formula(seed, weight):
    process, old, new = random_mdp(3, 2, 0.0, seed), random_policy(3, 2, seed), random_policy(3, 2, seed + 1)
    expected = Evaluated.of(process, new, weight).objective - Evaluated.of(process, old, weight).objective
    assert difference(process, old, new, weight).item() == pytest.approx(expected.item(), abs=1e-12)


@given(seeds, weights)
def test_iteration_never_lowers_the_objective_and_ends_at_a_local_optimum(seed, weight):
    process = random_mdp(3, 3, 0.0, seed)
    policy = random_policy(3, 3, seed)
    for _ in range(12):
        after = improved(process, policy, weight)
        found = [Evaluated.of(process, each, weight).objective for each in (policy, after)]
        assert found[1] >= found[0] - 1e-12
        policy = after
    assert torch.equal(improved(process, policy, weight), policy)
    for state in range(3):
        for action in range(3):
            mixed = policy.clone()
            mixed[state] = 0.999 * policy[state] + 0.001 * one_hot(torch.tensor(action), 3)
            assert Evaluated.of(process, mixed, weight).objective <= found[1] + 1e-9


@given(seeds, weights)
def test_no_random_policy_is_better_than_the_best_deterministic_one(seed, weight):
    process = random_mdp(3, 2, 0.0, seed)
    best = Evaluated.of(process, deterministic(process), weight).objective.max()
    random = torch.stack([random_policy(3, 2, seed + number) for number in range(20)])
    assert (Evaluated.of(process, random, weight).objective <= best + 1e-12).all()


def test_long_run_shares_mean_variance_and_potential_are_those_of_a_long_run():
    process, policy = random_mdp(3, 2, 0.0, 0), random_policy(3, 2, 0)
    at, chain = Evaluated.of(process, policy, 0.7), process.chain(policy)
    many = torch.linalg.matrix_power(chain, 200)
    torch.testing.assert_close(at.visits, many[0])
    frequency = many[0].unsqueeze(-1) * policy
    mean = (frequency * process.rewards).sum()
    second = (frequency * process.rewards**2).sum()
    torch.testing.assert_close(at.mean, mean)
    torch.testing.assert_close(at.variance, second - mean**2)
    expected = (policy * at.pseudo_rewards).sum(dim=-1)
    torch.testing.assert_close(at.potential, expected - at.objective + chain @ at.potential)


def test_scores_of_two_arms():
    """Arms of mean 1 and variance 0, and of mean 1.2 and variance 1: the reward is that of the state entered."""
    entered = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]).double()
    rewards = torch.tensor([[1.0, 1.0], [2.2, 2.2], [0.2, 0.2]], dtype=torch.float64)
    process = MDP(entered.expand(3, 2, 3), rewards, 0.0, torch.tensor([1.0, 0.0, 0.0]).double())
    arms = torch.stack([one_hot(torch.full((3,), arm), 2) for arm in range(2)])
    at = Evaluated.of(process, arms, 0.5)
    assert at.objective.tolist() == pytest.approx([1.0, 0.7], abs=1e-12)
    assert at.variance.tolist() == pytest.approx([0, 1], abs=1e-12)
    assert torch.equal(improved(process, arms[1], 0.5), arms[0])
