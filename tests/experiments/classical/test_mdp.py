"""Exact solutions of small decision processes, against sums over time and over all policies."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.shared.mdp import MDP, one_hot, random_mdp

seeds = st.integers(0, 1_000)


def random_policy(states, actions, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(states, actions, generator=generator, dtype=torch.float64).softmax(dim=-1)


@given(seeds)
def test_values_and_occupancy_are_discounted_sums(seed):
    process, policy = random_mdp(3, 2, 0.5, seed), random_policy(3, 2, seed)
    distribution, visits, total = process.start, torch.zeros(3).double(), 0.0
    for time in range(60):
        visits = visits + 0.5**time * distribution
        total += 0.5**time * (distribution.unsqueeze(-1) * policy * process.rewards).sum()
        distribution = torch.einsum("s,sa,san->n", distribution, policy, process.transitions)
    torch.testing.assert_close(process.occupancy(policy), visits)
    torch.testing.assert_close(process.expected(process.values(policy)), total)
    again = (policy * process.action_values(policy)).sum(dim=-1)
    torch.testing.assert_close(process.values(policy), again, atol=1e-12, rtol=0)


@given(seeds)
def test_the_optimum_is_that_of_all_deterministic_policies(seed):
    process = random_mdp(3, 3, 0.9, seed)
    every = [process.values(one_hot(torch.tensor(actions), 3)) for actions in itertools.product(range(3), repeat=3)]
    torch.testing.assert_close(process.optimal_values(), torch.stack(every).amax(dim=0))


def test_runs_are_solved_at_once_and_rewards_replaced():
    process = random_mdp(4, 2, 0.9, 0)
    policies = torch.stack([random_policy(4, 2, seed) for seed in range(3)])
    costs = 1 - process.rewards
    assert process.action_values(policies).shape == (3, 4, 2)
    for policy, values, visits in zip(policies, process.values(policies), process.occupancy(policies), strict=True):
        torch.testing.assert_close(values, process.values(policy))
        torch.testing.assert_close(visits, process.occupancy(policy))
        torch.testing.assert_close(
            process.values(policy) + process.values(policy, costs), torch.full((4,), 10.0).double()
        )


def test_a_process_that_is_none_is_refused():
    right = random_mdp(2, 2, 0.9, 0)
    with pytest.raises(ValueError, match="`transitions` has shape"):
        MDP(right.transitions[:1], right.rewards, 0.9, right.start)
    with pytest.raises(ValueError, match="`start` has rows that sum to"):
        MDP(right.transitions, right.rewards, 0.9, right.start / 2)
    with pytest.raises(ValueError, match="`discount` is 1; pass"):
        MDP(right.transitions, right.rewards, 1, right.start)
