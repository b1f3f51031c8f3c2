"""Soft actor-critic: targets by hand, what a step trains, and replayed transitions."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from experiments.classical.control.environments import Environments, Transition
from experiments.classical.control.soft_actor_critic import Replay, SoftActorCritic
from experiments.classical.control.tanh_gaussian import by_gradient
from experiments.classical.control.training import fit


def module(improve=by_gradient):
    torch.manual_seed(0)
    return SoftActorCritic(3, 1, improve, temperature=0.5, hidden=8, learning_rate=1e-3)


def constant(network, value):
    """Make a network return a constant."""
    for parameter in network.parameters():
        parameter.data.zero_()
    network[-1].bias.data.fill_(value)


def transitions(rewards, terminated):
    count = len(rewards)
    states, no = torch.zeros(count, 3), torch.zeros(count, dtype=torch.bool)
    ended = torch.tensor(terminated)
    return Transition(states, torch.zeros(count, 1), torch.tensor(rewards), states, ended, ended, ~no)


def test_the_squared_errors_by_hand(monkeypatch):
    """Critics of 2 and 3 against 0.1 r + 0.99 * 4, without the 4 at the end; a value of 1 against 2 - 0.5 log pi."""
    own = module()
    for network, value in zip((*own.critics, own.value, own.smoothed_value), (2.0, 3.0, 1.0, 4.0), strict=True):
        constant(network, value)
    constant(own.policy.mean, 0.0)
    constant(own.policy.log_deviation, 0.0)
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc)
    targets = [0.1 * 10 + 0.99 * 4, 0.1 * -10]
    soft = 2 - 0.5 * -0.5 * math.log(2 * math.pi)  # at its center the density is that of the normal variable
    expected = (
        sum((2 - target) ** 2 for target in targets) / 2
        + sum((3 - target) ** 2 for target in targets) / 2
        + (1 - soft) ** 2
    ) / 2
    assert own.value_loss(transitions([10.0, -10.0], [False, True])).item() == pytest.approx(expected, rel=1e-5)


def test_the_quality_is_the_smaller_critic():
    own = module()
    states, actions = torch.randn(6, 3), torch.randn(6, 1)
    both = torch.stack(own.qualities(states, actions))
    torch.testing.assert_close(own.quality(states, actions), both.amin(dim=0))


def test_a_step_trains_every_part_and_smooths_the_value():
    environments = Environments("Pendulum-v1", 2, seed=0)
    own = module()
    before = {name: parameter.clone() for name, parameter in own.state_dict().items()}
    replay = Replay(environments, own.policy, steps=10, random_steps=10, batch_size=4, updates=1)
    fit(own, DataLoader(replay, batch_size=None), 1, [], clip=None)
    after = own.state_dict()
    for part in ("policy.mean", "policy.log_deviation", "critics.0", "critics.1", "value"):
        assert not torch.equal(before[f"{part}.4.weight"], after[f"{part}.4.weight"])
    expected = before["smoothed_value.4.weight"].lerp(after["value.4.weight"], 0.005)
    torch.testing.assert_close(after["smoothed_value.4.weight"], expected)


def test_a_replay_has_the_steps_of_the_task_alone():
    environments = Environments("Pendulum-v1", 2, seed=0)
    replay = Replay(environments, module().policy, steps=404, random_steps=300, batch_size=16, updates=2)
    batches = list(replay)
    assert len(batches) == 2 * (404 - 300 + 2) // 2
    assert replay._seen == 402  # without the reset of either environment
    assert replay.taken == 404
    for batch in batches:
        assert batch.counts.all()
        assert batch.states.shape == (16, 3)
    # Each row is one transition: cosine and sine turn by the velocity after the step times 0.05.
    last = batches[-1]
    turned = torch.atan2(last.states[:, 1], last.states[:, 0]) + 0.05 * last.next_states[:, 2]
    torch.testing.assert_close(turned.cos(), last.next_states[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.sin(), last.next_states[:, 1], atol=1e-5, rtol=0)


def test_a_replay_keeps_the_rows_that_count():
    environments = Environments("Pendulum-v1", 3, seed=0)
    replay = Replay(environments, module().policy, steps=6, random_steps=6, batch_size=64, updates=1)
    step = transitions([1.0, 2.0, 3.0], [False, False, False])
    replay._keep(step._replace(counts=torch.tensor([False, True, True])))
    assert (replay.taken, replay._seen) == (3, 2)
    assert replay._table.rewards[:2].tolist() == [2, 3]
