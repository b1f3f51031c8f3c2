"""The context of an estimator, and the requirements on its result."""

from dataclasses import dataclass, fields

import pytest
import torch

from aggregate_po import AdvantageEstimator, GroupedRewards
from aggregate_po.advantages import ComponentNormalized, GroupAdvantage, GroupCentered, LengthWeightedCentered
from tests.aggregate_po.advantages.estimators import ALL, FIXTURE


def test_groups_are_neighbors():
    step = GroupedRewards(torch.tensor([1, 2, 3, 4, 5, 6]), group_size=3)
    assert step.groups.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert step.groups.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_whole_numbers_become_floating_point_numbers(dtype):
    components = torch.tensor([[1], [0]], dtype=dtype)
    step = GroupedRewards(torch.tensor([1, 0], dtype=dtype), group_size=2, components=components)
    assert step.rewards.dtype == step.components.dtype == torch.float32
    assert (step.rewards.tolist(), step.components.tolist()) == ([1.0, 0.0], [[1.0], [0.0]])


def test_a_missing_reward_is_the_mean_of_the_others():
    """The mean of the group, or of the rollout if the group has none; a single reward of a group is left out, too."""
    rewards = torch.tensor([1.0, torch.nan, 4.0, 9.0, 9.0, torch.inf, 9.0, 9.0, 9.0])
    scored = torch.tensor([True, False, True, True, False, False, False, False, False])
    step = GroupedRewards(rewards, 3, components=torch.stack([rewards, -rewards], dim=-1), scored=scored)
    assert step.rewards.tolist() == [1.0, 2.5, 4.0, *[2.5] * 6]
    assert torch.equal(step.components, torch.stack([step.rewards, -step.rewards], dim=-1))
    assert step.scored.tolist() == [True, False, True, *[False] * 6]
    assert step.known_rewards.tolist() == [1.0, 4.0]
    nothing = GroupedRewards(rewards, 3, scored=torch.zeros(9))
    assert nothing.rewards.tolist() == nothing.known_rewards.tolist() == [0.0] * 9


def test_groups_of_one_need_no_company():
    step = GroupedRewards(torch.tensor([1.0, 3.0]), 1, scored=torch.tensor([True, False]))
    assert step.scored.tolist() == [True, False]


class WithoutTheMask(AdvantageEstimator):
    def __call__(self, rollout):
        return rollout.rounded((rollout.groups - rollout.groups.mean(dim=-1, keepdim=True)).flatten())


def test_an_estimator_that_ignores_missing_rewards_has_the_right_mean():
    scored = torch.tensor([True, False, True, True])
    step = GroupedRewards(torch.tensor([1.0, 9.0, 0.0, 2.0]), 4, scored=scored)
    assert WithoutTheMask()(step).tolist() == GroupCentered()(step).tolist() == [0.0, 0.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"rewards": torch.zeros(7)},
            ValueError,
            r"^`rewards` has batch=7, which `group_size`=4 does not divide; pass whole groups",
        ),
        ({"group_size": 0}, ValueError, r"`group_size`=0 does not divide"),
        ({"rewards": torch.zeros(2, 4)}, ValueError, r"^`rewards` has shape \(2, 4\); pass one reward per completion"),
        ({"rewards": torch.zeros(0)}, ValueError, r"^`rewards` is empty; pass the rewards of at least one group"),
        ({"rewards": [0.0] * 8}, TypeError, r"^`rewards` is list, not a tensor"),
        (
            {"rewards": torch.tensor([torch.nan] + [0.0] * 7)},
            ValueError,
            r"^`rewards` has values that are not finite; pass a finite number",
        ),
        ({"lengths": torch.ones(7)}, ValueError, r"^`lengths` has batch=7, but `rewards` has batch=8"),
        ({"lengths": 3}, TypeError, r"^`lengths` is int, not a tensor"),
        ({"components": torch.ones(8)}, ValueError, r"^`components` has shape \(8,\), but `batch component` was"),
        ({"components": torch.ones(2, 8)}, ValueError, r"^`components` has batch=2, but `rewards` has batch=8"),
        ({"components": torch.full((8, 1), torch.inf)}, ValueError, r"^`components` has values that are not finite"),
        (
            {"components": torch.ones(8, 2), "component_weights": (1.0,)},
            ValueError,
            r"^`component_weights` is \(1.0,\), but `components` has 2 rewards; pass one weight for each",
        ),
        ({"scored": torch.ones(7)}, ValueError, r"^`scored` has batch=7, but `rewards` has batch=8"),
        ({"component_weights": (1.0,)}, ValueError, r"`components` has 0 rewards"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        GroupedRewards(**{"rewards": torch.zeros(8), "group_size": 4, **arguments})


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LengthWeightedCentered(), r"^`lengths` is None, but LengthWeightedCentered reads it; pass the tokens of each"),
        (ComponentNormalized(), r"^`components` is None, but ComponentNormalized reads it; pass the single rewards"),
    ],
)
def test_a_missing_field_is_named_with_its_reader(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator(GroupedRewards(torch.zeros(8), group_size=4))


def test_every_estimator_without_its_lengths_says_so_or_needs_none():
    readers = {"LengthWeightedCentered", "WhitenedReturns", "WhitenedCentered"}
    readers |= {"OverlongShaping", "LengthPenalty", "LengthCorrected"}
    step = GroupedRewards(torch.zeros(4), 4, components=torch.zeros(4, 1))
    for estimator in ALL:
        name = type(estimator).__name__
        if name in readers:
            with pytest.raises(ValueError, match=rf"^`lengths` is None, but {name} reads it"):
                estimator(step)
        else:
            assert estimator(step).shape == (4,)


def test_estimators_are_frozen_and_compare_by_value():
    for estimator in ALL:
        assert hash(estimator) == hash(
            type(estimator)(**{f.name: getattr(estimator, f.name) for f in fields(estimator)})
        )
        with pytest.raises(AttributeError):
            estimator.new_attribute = 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_advantages_have_the_precision_of_the_rewards(dtype):
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=dtype)
    step = GroupedRewards(rewards, 4, FIXTURE.lengths, components=rewards.unsqueeze(-1))
    for estimator in ALL:
        assert estimator(step).dtype == dtype, estimator


@dataclass(frozen=True)
class AgainstTheMedian(GroupAdvantage):
    """An estimator as a new user writes one."""

    def within_groups(self, step):
        return step.groups - step.groups.quantile(0.5, dim=-1, keepdim=True)


def test_an_estimator_of_the_users_own_is_one_method():
    rewards = torch.tensor([1.0, 0.0, 0.0, 5.0, 7.0, 9.0])
    assert AgainstTheMedian()(GroupedRewards(rewards, 3)).tolist() == [1.0, 0.0, 0.0, -2.0, 0.0, 2.0]
    assert issubclass(AgainstTheMedian, AdvantageEstimator)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_advantages_are_rounded_into_the_precision_of_the_rewards(dtype, given):
    step = GroupedRewards(torch.zeros(2, dtype=dtype), group_size=2)
    advantages = torch.tensor([[1e38, 0.1]], dtype=given)
    expected = torch.tensor([[min(1e38, torch.finfo(dtype).max), 0.1]], dtype=given).to(dtype)
    torch.testing.assert_close(step.rounded(advantages), expected, rtol=0, atol=0)


class Careless(GroupAdvantage):
    def within_groups(self, step):
        return step.groups.mean(dim=-1, keepdim=True)


def test_a_result_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"^`Careless.within_groups` returned shape \(2, 1\); return shape `prompt gr"):
        Careless()(GroupedRewards(torch.zeros(6), 3))


def test_an_estimator_leaves_its_context_alone():
    rewards, components = torch.tensor([1.0, 0.0, 0.5, 0.0]), torch.tensor([[1.0], [0.0], [0.5], [0.0]])
    lengths = FIXTURE.lengths.clone()
    step = GroupedRewards(rewards.clone(), 4, lengths, components.clone())
    for estimator in ALL:
        estimator(step)
    assert torch.equal(step.rewards, rewards)
    assert torch.equal(step.components, components)
    assert torch.equal(step.lengths, FIXTURE.lengths)


def test_the_context_is_frozen():
    with pytest.raises(AttributeError):
        FIXTURE.group_size = 2
    assert GroupCentered() == GroupCentered()
