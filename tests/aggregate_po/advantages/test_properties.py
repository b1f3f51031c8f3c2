"""Properties of every estimator on random rollouts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po.advantages import ComponentNormalized, GroupedRewards, KalmanBaseline, MeanNormalized
from tests.aggregate_po.advantages.estimators import ALL, CENTERED_IN_GROUPS, GROUPWISE, ZERO_WHERE_EQUAL
from tests.contracts.strategies import generators, sizes

LARGEST = torch.finfo(torch.float32).max
every = pytest.mark.parametrize("estimator", ALL, ids=str)


def numbers():
    """Finite rewards of every size that float32 knows, 0 and 1 often."""
    special = [0.0, 1.0, -1.0, 0.5, 1e30, -1e30, 1e-30, 1e-45, LARGEST, -LARGEST, 0.1, 1 + 1e-7]
    return st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-10, 10, width=32), st.sampled_from(special))


@st.composite
def steps(draw, smallest_group=1, dtype=torch.float32, rewards=numbers()):
    """Rewards with many ties, lengths with some zeros, several rewards whose weighted sum is the total."""
    prompts, group_size = draw(sizes(5)), max(draw(sizes(8)), smallest_group)
    batch = prompts * group_size
    generator = draw(generators())
    palette = torch.tensor(draw(st.lists(rewards, min_size=1, max_size=5)), dtype=dtype)
    lengths = torch.randint(draw(st.integers(0, 1)), 40, (batch,), generator=generator)
    total = palette[torch.randint(len(palette), (batch,), generator=generator)]
    return GroupedRewards(
        rewards=total,
        group_size=group_size,
        lengths=lengths,
        components=torch.stack([total, torch.zeros_like(total)], dim=-1),
        component_weights=(1.0, 2.0),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


def for_estimator(estimator, step):
    """The step, without what the estimator refuses."""
    return replace(step, rewards=step.rewards.abs()) if isinstance(estimator, MeanNormalized) else step


def rows_of(step, rows):
    """The step of some completions only."""
    return replace(step, rewards=step.rewards[rows], lengths=step.lengths[rows], components=step.components[rows])


def tokens_of(advantages, time):
    """Advantages of either shape as `batch time`."""
    if advantages.ndim == 1:
        return advantages.unsqueeze(-1).expand(-1, time)
    return torch.nn.functional.pad(advantages, (0, time - advantages.shape[1]))


@every
@given(step=steps())
def test_advantages_are_finite_whatever_the_rewards(estimator, step):
    advantages = estimator(for_estimator(estimator, step))
    assert advantages.isfinite().all()
    time = int(step.lengths.max())
    assert advantages.shape in ((len(step.rewards),), (len(step.rewards), time))


@every
@given(step=steps(dtype=torch.float16, rewards=st.sampled_from([0.0, 1.0, 65504.0, -65504.0, 6e-8, 0.1])))
def test_advantages_are_finite_in_half_precision(estimator, step):
    assert estimator(for_estimator(estimator, step)).isfinite().all()


@every
@given(
    step=steps(dtype=torch.float64, rewards=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-10, 10, width=32))),
    data=st.data(),
)
def test_permuting_prompts_permutes_advantages(estimator, step, data):
    if estimator == KalmanBaseline("shuffled"):
        return  # the order sampled for a prompt goes with its place
    step = for_estimator(estimator, step)
    prompts = len(step.rewards) // step.group_size
    order = torch.randperm(prompts, generator=data.draw(generators()))
    rows = (order.unsqueeze(-1) * step.group_size + torch.arange(step.group_size)).flatten()
    expected = estimator(step)[rows]
    torch.testing.assert_close(estimator(rows_of(step, rows)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", [*GROUPWISE], ids=str)
@given(step=steps(), other=numbers())
def test_groups_do_not_influence_each_other(estimator, step, other):
    step = for_estimator(estimator, step)
    first = slice(0, step.group_size)
    rewards = torch.full_like(step.rewards, abs(other))
    rewards[first] = step.rewards[first]
    assert torch.equal(
        estimator(replace(step, rewards=rewards, components=None, component_weights=None))[first],
        estimator(step)[first],
    )


@pytest.mark.parametrize("estimator", ZERO_WHERE_EQUAL, ids=str)
@given(step=steps(), reward=numbers())
def test_a_group_of_equal_rewards_has_exactly_no_advantage(estimator, step, reward):
    rewards = step.rewards.clone()
    rewards[: step.group_size] = reward
    step = for_estimator(estimator, replace(step, rewards=rewards))
    assert not estimator(step)[: step.group_size].any()


@pytest.mark.parametrize("estimator", CENTERED_IN_GROUPS, ids=str)
@given(step=steps(smallest_group=2, dtype=torch.float64, rewards=st.sampled_from([0.0, 1.0, 0.5])))
def test_the_better_of_two_completions_has_no_smaller_advantage(estimator, step):
    groups, advantages = step.groups, step.grouped(estimator(replace(step, lengths=step.lengths.clamp(min=1))))
    better = groups.unsqueeze(-1) > groups.unsqueeze(-2)
    assert (~better | (advantages.unsqueeze(-1) >= advantages.unsqueeze(-2))).all()


@pytest.mark.parametrize("estimator", [one for one in ALL if one != ComponentNormalized()], ids=str)
@given(step=steps())
def test_the_single_rewards_make_no_difference_to_those_who_do_not_read_them(estimator, step):
    step = for_estimator(estimator, step)
    alone = replace(step, components=None, component_weights=None)
    assert torch.equal(estimator(alone), estimator(step))
