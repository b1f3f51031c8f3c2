"""Vector environments: scaled actions, resets that do not count, and returns."""

import itertools

import pytest
import torch

from experiments.classical.control.environments import Environments


def test_actions_of_pendulum_are_scaled_to_its_torque_and_clipped():
    """The cost of a torque u is 0.001 u^2, and the largest torque is 2."""
    rewards = []
    for action in (0.0, 0.5, 1.0, 3.0):
        environments = Environments("Pendulum-v1", 2, seed=0)
        rewards.append(environments.step(torch.full((2, 1), action)).rewards)
    for found, torque in zip(rewards, (0, 1, 2, 2), strict=True):
        torch.testing.assert_close(rewards[0] - found, torch.full((2,), 0.001 * torque**2), atol=1e-6, rtol=0)


def test_a_time_limit_ends_the_episode_and_not_the_task():
    environments = Environments("Pendulum-v1", 2, seed=0)
    steps = [environments.step(torch.zeros(2, 1)) for _ in range(202)]
    assert [number for number, step in enumerate(steps) if step.ended.any()] == [199]
    assert not torch.stack([step.terminated for step in steps]).any()
    assert [number for number, step in enumerate(steps) if not step.counts.all()] == [200]
    assert len(environments.returns) == 2
    total = torch.stack([step.rewards for step in steps[:200]]).sum(dim=0)
    assert environments.returns == pytest.approx(total.tolist(), rel=1e-5)


def test_each_step_begins_where_the_last_one_ended():
    environments = Environments("CartPole-v1", 3, seed=1)
    assert (environments.state_size, environments.action_size, environments.continuous) == (4, 2, False)
    steps = [environments.step(torch.ones(3, dtype=torch.long)) for _ in range(30)]
    for before, after in itertools.pairwise(steps):
        torch.testing.assert_close(before.next_states, after.states)
        assert torch.equal(after.counts, ~before.ended)
        # A reset has no reward, and every step of the task has one.
        assert torch.equal(after.rewards, after.counts.float())
    terminated = torch.stack([step.terminated for step in steps])
    assert len(environments.returns) == terminated.sum()
    assert set(environments.returns) <= {8.0, 9.0, 10.0, 11.0}  # pushed one way the pole falls at once
