"""Properties of every estimator on random rollouts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po.advantages import (
    ComponentNormalized,
    GroupedRewards,
    GroupNormalized,
    MeanNormalized,
)
from aggregate_po.advantages.rounding import equal_up_to_rounding
from tests.aggregate_po.advantages.estimators import ALL, CENTERED_IN_GROUPS, GROUPWISE, WHITENED, ZERO_WHERE_EQUAL
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


def rows_of(step, rows, **changes):
    """The step of some completions only."""
    per_completion = {name: getattr(step, name)[rows] for name in ("rewards", "lengths", "components")}
    return replace(step, **per_completion, **changes)


def tokens_of(advantages, time):
    """Advantages of either shape as `batch time`."""
    if advantages.ndim == 1:
        return advantages.unsqueeze(-1).expand(-1, time)
    return torch.nn.functional.pad(advantages, (0, time - advantages.shape[1]))


@every
@given(step=steps(smallest_group=2), generator=generators())
def test_completions_without_a_reward_are_absent(estimator, step, generator):
    """In groups of equal size; the missing completions are at random places and have any values."""
    step = for_estimator(estimator, step)
    size = int(torch.randint(2, step.group_size + 1, (), generator=generator))
    chosen = (torch.rand(step.groups.shape, generator=generator).argsort(dim=-1) < size).flatten()
    junk = {
        "rewards": torch.where(chosen, step.rewards, torch.nan),
        "components": torch.where(chosen.unsqueeze(-1), step.components, torch.inf),
    }
    advantages = estimator(replace(step, **junk, scored=chosen))
    expected = estimator(rows_of(step, chosen, group_size=size))
    assert not advantages[~chosen].any()
    assert torch.equal(tokens_of(advantages[chosen], 40), tokens_of(expected, 40)) or torch.allclose(
        tokens_of(advantages[chosen], 40), tokens_of(expected, 40), rtol=1e-5, atol=1e-6
    )


@every
@given(step=steps(smallest_group=2), generator=generators())
def test_groups_may_have_different_numbers_of_rewards(estimator, step, generator):
    """Also none; a single reward has nothing to be compared with."""
    step = for_estimator(estimator, step)
    scored = torch.rand(step.rewards.shape, generator=generator) < 0.5
    advantages = estimator(replace(step, scored=scored))
    compared = (step.grouped(scored).sum(dim=-1, keepdim=True) >= 2) & step.grouped(scored).bool()
    assert torch.isfinite(advantages).all()
    assert not advantages[~compared.flatten()].any()
    if estimator in GROUPWISE and getattr(estimator, "order", None) != "shuffled":
        for rows in compared.nonzero()[:, 0].unique().tolist():
            row = step.group_size * rows + compared[rows].nonzero().squeeze(-1)
            alone = estimator(rows_of(step, row, group_size=len(row)))
            torch.testing.assert_close(advantages[row], alone)


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
    if getattr(estimator, "order", None) == "shuffled":
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


# Equal on paper, and not in the floating-point numbers of any order of the same sum.
EQUAL_ON_PAPER = {
    "sum": [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2],
    "many terms": [sum([0.1] * 1000), 100.0, 100.0, 100.0],
    "product": [0.1 * 3, 0.3, 0.3, 0.3],
    "large": [1e15 * 0.1, 1e15 / 10 + 0.015625, 1e14, 1e14],
    "negative": [-(0.1 + 0.7), -0.8, -0.8, -0.8],
    "tiny": [(0.1 + 0.2) * 1e-30, 0.3e-30, 0.3e-30, 0.3e-30],
    "huge": [(0.1 + 0.2) * 1e300, 0.3e300, 0.3e300, 0.3e300],
}


def takes(estimator, rewards):
    return not (isinstance(estimator, MeanNormalized) and min(rewards) < 0)


@pytest.mark.parametrize("rewards", EQUAL_ON_PAPER.values(), ids=EQUAL_ON_PAPER.keys())
@pytest.mark.parametrize("estimator", [*ZERO_WHERE_EQUAL, *WHITENED], ids=str)
def test_rewards_that_are_equal_on_paper_have_exactly_no_advantage(estimator, rewards):
    if not takes(estimator, rewards):
        return
    rewards = torch.tensor(rewards, dtype=torch.float64)
    assert len(rewards.unique()) > 1
    step = GroupedRewards(rewards, 4, lengths=torch.full((4,), 3), components=rewards.unsqueeze(-1))
    advantages = estimator(step)
    if getattr(estimator, "discount", 1) == 1:  # a discount makes the returns of tokens differ
        assert not advantages.any()
    assert equal_up_to_rounding(step.rewards.view(1, 4)).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e9, 1e39, 1e300])
@pytest.mark.parametrize("difference", [1e-9, 1.0])
def test_rewards_that_differ_are_normalized_at_every_scale(scale, difference):
    """One better by a part in a billion, or twice as good: 1.5 and three times -0.5 in units of the deviation."""
    rewards = scale * torch.tensor([1 + difference, 1.0, 1.0, 1.0], dtype=torch.float64)
    advantages = GroupNormalized(delta=0.0)(GroupedRewards(rewards, group_size=4))
    expected = torch.tensor([1.5, -0.5, -0.5, -0.5], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=0)
    assert not equal_up_to_rounding(rewards.view(1, 4)).any()


def test_rounding_errors_are_those_of_the_precision_of_the_rewards():
    groups = [0.8, 0.8 + 2e-7, 0.8, 0.8]
    for dtype, equal in ((torch.float32, True), (torch.float64, False)):
        step = GroupedRewards(torch.tensor(groups, dtype=dtype), group_size=4)
        assert (GroupNormalized(delta=0.0)(step) == 0).all() == equal
    narrow = GroupedRewards(torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16), group_size=2)
    assert GroupNormalized(delta=0.0)(narrow).any()
