"""Advantages of a group that was rewarded once."""

import pytest
import torch

from aggregate_po.advantages import group_centered, group_normalized, leave_one_out
from tests.aggregate_po.worked_example import close

REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
ALL = [group_normalized, group_centered, leave_one_out]


def test_group_normalized():
    close(group_normalized(REWARDS, 4), [1.499997, -0.499999, -0.499999, -0.499999])


@pytest.mark.parametrize(
    ("options", "first", "others"),
    [
        ({"delta": 0.0}, 1.5, -0.5),
        ({"ddof": 0, "delta": 0.0}, 1.73205081, -0.57735027),
        ({"delta": 1e-4}, 1.49970006, -0.49990002),
        ({"delta": 0.5}, 0.75, -0.25),
    ],
    ids=["unbiased", "population", "delta 1e-4", "delta 0.5"],
)
def test_group_normalized_with_options(options, first, others):
    close(group_normalized(REWARDS, 4, **options), [first, others, others, others])


def test_group_centered():
    close(group_centered(REWARDS, 4), [0.75, -0.25, -0.25, -0.25])


def test_leave_one_out():
    close(leave_one_out(REWARDS, 4), [1.0, -1 / 3, -1 / 3, -1 / 3])


def test_groups_are_neighbours_and_do_not_mix():
    rewards = torch.tensor([1.0, 0.0, 10.0, 30.0], dtype=torch.float64)
    close(group_centered(rewards, 2), [0.5, -0.5, -10.0, 10.0])
    close(leave_one_out(rewards, 2), [1.0, -1.0, -20.0, 20.0])
    half = 0.5**0.5
    close(group_normalized(rewards, 2, delta=0.0), [half, -half, -half, half])


@pytest.mark.parametrize("advantages", ALL)
def test_group_of_one_has_no_advantage(advantages):
    assert advantages(torch.tensor([3.0, -1.0]), 1).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("group_size", [3, 6, 7])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.1])
def test_equal_rewards_have_exactly_no_advantage(advantages, group_size, reward):
    """Also where the mean of equal numbers is rounded to another number."""
    assert advantages(torch.full((2 * group_size,), reward), group_size).tolist() == [0.0] * (2 * group_size)


def test_equal_rewards_have_no_advantage_without_delta():
    assert group_normalized(torch.ones(4), 4, delta=0.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("advantages", ALL)
def test_rewards_may_be_whole_numbers(advantages):
    torch.testing.assert_close(advantages(torch.tensor([1, 0, 0, 0]), 4), advantages(REWARDS.float(), 4))


@pytest.mark.parametrize("advantages", ALL)
def test_errors_name_the_argument_and_the_remedy(advantages):
    with pytest.raises(ValueError, match=r"^`rewards` has batch=7, which `group_size`=4 does not divide; pass whole"):
        advantages(torch.zeros(7), 4)
    with pytest.raises(ValueError, match=r"`group_size`=0 does not divide"):
        advantages(torch.zeros(8), 0)
    with pytest.raises(ValueError, match=r"^`rewards` has shape \(2, 4\); pass one reward per completion"):
        advantages(torch.zeros(2, 4), 4)


def test_group_normalized_rejects_other_degrees_of_freedom():
    with pytest.raises(ValueError, match=r"^`ddof` is 2; pass 1 for the unbiased standard deviation or 0"):
        group_normalized(REWARDS, 4, ddof=2)
