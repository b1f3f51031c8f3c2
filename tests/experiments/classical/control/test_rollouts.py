"""Proximal policy optimization: advantages by hand, surrogates against their formulas, and the library's early stop."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aggregate_po import PolicyBatch
from aggregate_po.recipes import espo, grpo
from experiments.classical.control.actor import Actor, CurrentPass, StepBatch, StepPolicy
from experiments.classical.control.environments import Environments, Transition
from experiments.classical.control.ratio_range import RatioRange
from experiments.classical.control.rollouts import Rollouts, Sizes, generalized_advantages
from experiments.classical.control.training import fit
from lightning_modules import RatioDeviationStop
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer
from lightning_modules.data.loader import RolloutLoader

SIZES = Sizes(steps=16, epochs=3, minibatches=4, discount=0.9, decay=0.5, learning_rate=1e-2)


def column(*values):
    return torch.tensor(values).unsqueeze(-1)


def steps(rewards, terminated, ended):
    empty = torch.zeros(len(rewards), 1, 1)
    ends = column(*ended)
    return Transition(empty, empty, column(*rewards), empty, column(*terminated), ends, torch.ones_like(ends))


def test_advantages_by_hand():
    """Discount 0.9 and decay 0.5. The second step is the last of the task, and the fourth that of its time."""
    step = steps([1.0, 2.0, 3.0, 4.0, 5.0], [False, True, False, False, False], [False, True, False, True, False])
    values, following = column(10.0, 20.0, 30.0, 40.0, 50.0), column(20.0, 99.0, 40.0, 50.0, 60.0)
    found = generalized_advantages(step, values, following, 0.9, 0.5)
    errors = [1 + 0.9 * 20 - 10, 2 - 20, 3 + 0.9 * 40 - 30, 4 + 0.9 * 50 - 40, 5 + 0.9 * 60 - 50]
    assert errors == [9, -18, 9, 9, 9]
    expected = column(9 + 0.45 * -18, -18.0, 9 + 0.45 * 9, 9.0, 9.0)
    torch.testing.assert_close(found, expected)


def test_without_decay_advantages_are_discounted_returns_above_the_value():
    torch.manual_seed(0)
    rewards, values = torch.randn(5).tolist(), torch.randn(6)
    step = steps(rewards, [False] * 4 + [True], [False] * 4 + [True])
    found = generalized_advantages(step, values[:5].unsqueeze(-1), values[1:].unsqueeze(-1), 0.9, 1.0)
    for start in range(5):
        returned = sum(0.9**late * reward for late, reward in enumerate(rewards[start:]))
        assert found[start].item() == pytest.approx(returned - values[start].item(), abs=1e-5)


@pytest.mark.parametrize("objective", [grpo(), espo()])
def test_on_single_tokens_the_objectives_are_the_surrogates_of_the_paper(objective):
    torch.manual_seed(0)
    old, new, advantages = torch.randn(64, 1), torch.randn(64, 1, requires_grad=True), torch.randn(64)
    ratio = (new - old).exp().squeeze(-1)
    surrogate = ratio * advantages
    if objective.token_transform is not None:
        surrogate = torch.minimum(surrogate, ratio.clamp(0.8, 1.2) * advantages)
    value = objective(new, PolicyBatch(old, torch.ones(64, 1).bool(), advantages))
    torch.testing.assert_close(value, surrogate.mean())
    gradients = [torch.autograd.grad(each, new, retain_graph=True)[0] for each in (value, surrogate.mean())]
    torch.testing.assert_close(*gradients)


class Moved(nn.Module):
    """Policy whose log-probabilities have moved by given amounts since the rollout."""

    device = torch.device("cpu")

    def current(self, batch):
        return CurrentPass(batch.states)


@pytest.mark.parametrize(("bound", "left"), [(0.25, 0), (0.38, 0), (0.39, 2)])
def test_the_library_stops_the_epochs_of_steps(bound, left):
    """Log ratios of 0.6, -0.5, 0.2 and 0.1: the mean of |r - 1| is 0.38554, which is more than 0.25."""
    log_ratios = column(0.6, -0.5, 0.2, 0.1)
    zeros = torch.zeros_like(log_ratios)
    rollout = StepBatch(log_ratios, zeros, PolicyBatch(zeros, zeros == 0, torch.ones(4)))
    halves = [rollout.select(torch.tensor(rows)) for rows in ([0, 3], [1, 2])]
    loader = RolloutLoader(RolloutBuffer(lambda number: PreparedRollout(halves * 2), 4, 2))
    logged, stop = {}, RatioDeviationStop(bound)
    trainer = SimpleNamespace(train_dataloader=loader, world_size=1, accumulate_grad_batches=1)
    module = SimpleNamespace(policy=Moved(), log=logged.__setitem__)
    batches = iter(loader)
    next(batches)
    next(batches)
    stop.on_train_batch_end(trainer, module, None, halves[1], 1)
    assert logged["ratio/deviation"] == pytest.approx(0.38554, abs=5e-6)
    assert (len(list(batches)), stop.dropped_updates) == (left, 2 - left)


def test_messages_of_lightning_come_through_again_after_a_run():
    log = logging.getLogger("lightning.pytorch")
    run(rollouts=1)
    assert log.level == logging.INFO


def run(task="CartPole-v1", bound=None, objective=None, rollouts=2):
    torch.manual_seed(0)
    environments = Environments(task, 4, seed=0)
    policy = StepPolicy(environments, hidden=8)
    made = Rollouts(environments, policy, SIZES, hidden=8)
    measures = RatioRange(made)
    stop = [] if bound is None else [RatioDeviationStop(bound)]
    actor = Actor(policy, objective or espo(), SIZES.learning_rate)
    fit(actor, made.loader(), rollouts, [measures, *stop], clip=0.5)
    return made, measures


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_ratios_are_measured_after_each_epoch_and_stay_after_a_stop(task):
    _, free = run(task)
    assert [len(epochs) for epochs in free.measured] == [3, 3]
    for epochs in free.measured:
        deviations = [epoch[-1] for epoch in epochs]
        assert len(set(deviations)) == 3
        assert all(epoch[:-1] == sorted(epoch[:-1]) for epoch in epochs)
    _, stopped = run(task, bound=1e-9)
    for epochs in stopped.measured:
        assert epochs[0] == epochs[1] == epochs[2]
    assert stopped.measured[0][0] == free.measured[0][0]


def test_a_rollout_is_split_into_minibatches_of_every_epoch():
    torch.manual_seed(0)
    environments = Environments("CartPole-v1", 4, seed=0)
    rollouts = Rollouts(environments, StepPolicy(environments, hidden=8), SIZES, hidden=8)
    batches = rollouts.make(0).batches
    everything = rollouts.rollout
    assert len(batches) == SIZES.epochs * SIZES.minibatches
    assert len(everything.states) < 4 * SIZES.steps  # some poles fell, and resets do not count
    for epoch in range(SIZES.epochs):
        own = torch.cat([batch.states for batch in batches[epoch * 4 : epoch * 4 + 4]])
        assert sorted(own.tolist()) == sorted(everything.states.tolist())
    advantages = everything.policy.advantages
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        rollouts.policy.current(everything).log_probs, everything.policy.old_log_probs, atol=1e-6, rtol=0
    )


def test_a_step_batch_can_be_moved():
    zeros = torch.zeros(2, 1)
    batch = StepBatch(zeros, zeros, PolicyBatch(zeros, zeros == 0, torch.ones(2)))
    assert batch.to(torch.float64).policy.old_log_probs.dtype == torch.float64
