"""Estimators of one group, by hand and to the printed digits."""

import pytest
import torch

from aggregate_po.advantages import (
    BestOfGroup,
    GroupCentered,
    GroupedRewards,
    GroupNormalized,
    LeaveOneOut,
    LengthWeightedCentered,
    MeanNormalized,
)
from tests.aggregate_po.advantages.estimators import CENTERED_IN_GROUPS, FIXTURE, ZERO_WHERE_EQUAL, one_group
from tests.aggregate_po.worked_example import close

THIRD = 1 / 3


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (GroupNormalized(), [1.499997, -0.499999, -0.499999, -0.499999]),
        (GroupNormalized(delta=0.0), [1.5, -0.5, -0.5, -0.5]),
        (GroupNormalized(ddof=0, delta=0.0), [1.73205081, -0.57735027, -0.57735027, -0.57735027]),
        (GroupNormalized(delta=1e-4), [1.49970006, -0.49990002, -0.49990002, -0.49990002]),
        (GroupNormalized(delta=0.5), [0.75, -0.25, -0.25, -0.25]),
        (GroupCentered(), [0.75, -0.25, -0.25, -0.25]),
        (LeaveOneOut(), [1.0, -THIRD, -THIRD, -THIRD]),
        (LengthWeightedCentered(), [0.9, -0.1, -0.1, -0.1]),
        (MeanNormalized(), [3.0, -1.0, -1.0, -1.0]),
        (BestOfGroup(delta=0.0), [2.0, 0.0, 0.0, 0.0]),
        (BestOfGroup(), [1.999996, 0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_one_success_in_four(estimator, expected):
    close(estimator(FIXTURE), expected)


def test_groups_are_neighbors_and_do_not_mix():
    step = GroupedRewards(torch.tensor([1.0, 0.0, 10.0, 30.0], dtype=torch.float64), 2, torch.tensor([1, 3, 3, 1]))
    close(GroupCentered()(step), [0.5, -0.5, -10.0, 10.0])
    close(LeaveOneOut()(step), [1.0, -1.0, -20.0, 20.0])
    close(LengthWeightedCentered()(step), [0.75, -0.25, -5.0, 15.0])
    close(MeanNormalized()(step), [1.0, -1.0, -0.5, 0.5])
    half = 0.5**0.5
    close(GroupNormalized(delta=0.0)(step), [half, -half, -half, half])
    close(BestOfGroup(delta=0.0)(step), [2 * half, 0.0, 0.0, 2 * half])


@pytest.mark.filterwarnings("error")  # such as that of a standard deviation without degrees of freedom
@pytest.mark.parametrize("estimator", CENTERED_IN_GROUPS, ids=str)
def test_group_of_one_has_no_advantage(estimator):
    step = GroupedRewards(torch.tensor([3.0, 1.0]), 1, lengths=torch.tensor([4, 5]))
    assert estimator(step).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("estimator", ZERO_WHERE_EQUAL, ids=str)
@pytest.mark.parametrize("group_size", [3, 6, 7])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.1, 1e30])
def test_equal_rewards_have_exactly_no_advantage(estimator, group_size, reward):
    """Also where the mean of equal numbers is rounded to another number, and next to a group that differs."""
    different = torch.linspace(0, reward, group_size)
    rewards = torch.cat([torch.full((2 * group_size,), reward), different])
    step = GroupedRewards(rewards, group_size, lengths=torch.arange(1, 3 * group_size + 1))
    advantages = estimator(step)
    assert advantages[: 2 * group_size].tolist() == [0.0] * (2 * group_size)
    assert advantages[2 * group_size :].any()


def test_a_group_without_tokens_has_no_length_weighted_mean():
    step = GroupedRewards(torch.tensor([1.0, 0.0, 1.0, 0.0]), 2, lengths=torch.tensor([0, 0, 0, 5]))
    assert LengthWeightedCentered()(step).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_of_two_best_neither_leads():
    assert BestOfGroup()(one_group(1.0, 2.0, 2.0, 0.0)).tolist() == [0.0] * 4
    close(BestOfGroup(delta=0.0)(one_group(-3.0, -1.0, -2.0, -2.0)), [0.0, 1 / (2 / 3) ** 0.5, 0.0, 0.0])


def test_a_mean_of_zero_gives_no_advantage():
    step = GroupedRewards(torch.tensor([0.0, 0.0, 1e-45, 0.0]), 2)
    assert MeanNormalized()(step).tolist() == [0.0, 0.0, 1.0, -1.0]


def test_a_negative_reward_has_no_mean_to_divide_by():
    with pytest.raises(
        ValueError, match=r"^`rewards` has -0.5, but MeanNormalized divides by their mean; pass rewards"
    ):
        MeanNormalized()(one_group(1.0, -0.5, 1.0, 1.0))


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"^`ddof` is 2; pass 1 for the unbiased standard deviation or 0"):
        GroupNormalized(ddof=2)
    with pytest.raises(ValueError, match=r"^`delta` is -1; pass 0 or more"):
        GroupNormalized(delta=-1)
    with pytest.raises(ValueError, match=r"^`delta` is nan; pass 0 or more"):
        BestOfGroup(delta=float("nan"))
