"""Advantages of single steps, from a reward at every step, worked by hand."""

from dataclasses import replace

import pytest
import torch

from aggregate_po.advantages import Clamped, GroupCentered, GroupedRewards, StepValues
from tests.aggregate_po.worked_example import close

TWO = [[1.0, 1.0], [3.0, 1.0]]


def rollout(step_rewards, group_size=2, **fields):
    steps = torch.tensor(step_rewards, dtype=torch.float64)
    return GroupedRewards(steps.sum(dim=-1), group_size, step_rewards=steps, **fields)


@pytest.mark.parametrize(
    ("estimator", "advantages"),
    [
        # Values 2, 1 and 4, 1 of means 1.5 and 2.5; weighted by their shares 8/3, 2/3 and 6.4, 0.4.
        (StepValues(1.0, 0.0, delta=0.0), [[-0.70710678, 0.70710678], [0.70710678, -0.70710678]]),
        (StepValues(1.0, 0.1, delta=0.0), [[-0.44044011, 0.77377345], [1.34710678, -0.66710678]]),
        (StepValues(1.0, 0.1, 1, delta=0.0), [[-0.44044011, 0.70710678], [1.34710678, -0.70710678]]),
        # Deviations of 28/15 and 2/15, standard deviations of 28/15 and 2/15 times the root of 2.
        (StepValues(1.0, 0.0, delta=1.0), [[-0.51283948, 0.11218040], [0.51283948, -0.11218040]]),
        # Values 1.5, 1 and 3.5, 1 of means 1.25 and 2.25: 1.8, 0.8 and 49/9, 4/9.
        (StepValues(0.5, 1.0, 1, delta=0.0), [[1.09289322, 0.70710678], [6.15155123, -0.70710678]]),
        # Without a future each value is its reward, of means 1 and 2: 1, 1 and 4.5, 0.5.
        (StepValues(0.0, 1.0, 2, delta=0.0), [[0.29289322, 1.70710678], [5.20710678, -0.20710678]]),
    ],
)
def test_worked_by_hand(estimator, advantages):
    close(estimator(rollout(TWO)), advantages)


def test_equal_trajectories_keep_the_absolute_term_alone():
    """Rewards 0.1 and 0.3 to rounding: 0.4, 0.3 of mean 0.35."""
    equal = rollout([[0.1, 0.3], [0.1, 0.3], [0.1, 0.3]], group_size=3)
    close(StepValues(1.0, 0.5)(equal), [[0.5 * 0.16 / 0.35, 0.5 * 0.09 / 0.35]] * 3, tolerance=1e-12)
    assert StepValues(1.0, 0.0)(equal).tolist() == [[0.0, 0.0]] * 3


def test_a_trajectory_without_rewards_has_the_limit_of_small_ones():
    none, small = (StepValues()(rollout([[share, 2 * share], [1.0, 2.0]])) for share in (0.0, 1e-12))
    assert none.isfinite().all()
    close(none, small, tolerance=1e-10)
    assert StepValues()(rollout([[0.0, 0.0]] * 2)).tolist() == [[0.0, 0.0]] * 2


def test_steps_beyond_the_length_are_not_there():
    """The second step of the first trajectory is padding, and the other one is alone in it."""
    lengths = torch.tensor([1, 2])
    found = StepValues(1.0, 0.1, delta=0.0)(rollout([[2.0, 9.0], [3.0, 1.0]], lengths=lengths))
    close(found, [[-0.70710678 + 0.2, 0.0], [0.70710678 + 0.64, 0.04]])
    steps = torch.tensor([[2.0, float("nan")], [3.0, 1.0]], dtype=torch.float64)
    junk = GroupedRewards(torch.ones(2).double(), 2, lengths=lengths, step_rewards=steps)
    assert junk.step_rewards.tolist() == [[2.0, 0.0], [3.0, 1.0]]
    close(StepValues(1.0, 0.1, delta=0.0)(junk), found)


def test_other_groups_change_nothing():
    alone, among = StepValues()(rollout(TWO)), StepValues()(rollout([*TWO, [5.0, 0.0], [0.0, 7.0]]))
    assert torch.equal(among[:2], alone)


def test_parts_of_a_rollout_keep_their_steps():
    """As an estimator calls for the completions with a reward."""
    scored = torch.tensor([True, False, True, True, True, True])
    steps = [[1.0, 2.0], [float("nan")] * 2, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]
    seen = []
    whole = replace(rollout([[0.0, 0.0]] * 6, group_size=3), step_rewards=torch.tensor(steps), scored=scored)
    whole.by_groups(lambda part: seen.append(part.step_rewards.tolist()) or part.groups)
    assert sorted(seen) == [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]]
    assert whole.step_rewards[1].tolist() == [2.0, 3.0]


def test_bounds_of_advantages_per_step():
    close(Clamped(StepValues(1.0, 0.0, delta=0.0), 0.5)(rollout(TWO)), [[-0.5, 0.5], [0.5, -0.5]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepValues(discount=1.5), r"^`discount` is 1.5; pass a number from 0 to 1"),
        (lambda: StepValues(absolute=-1.0), r"^`absolute` is -1.0; pass 0 or more"),
        (lambda: StepValues(absolute_steps=-1), r"^`absolute_steps` is -1; pass a whole number, 0 or more"),
        (lambda: StepValues(absolute_steps=2.5), r"^`absolute_steps` is 2.5; pass a whole number, 0 or more"),
        (
            lambda: StepValues()(GroupedRewards(torch.ones(2), 2)),
            r"^`step_rewards` is None, but StepValues reads it; pass a reward for each step, `Gro.*`batch time`\.$",
        ),
        (
            lambda: StepValues()(rollout([[1.0, -0.25], [1.0, 1.0]])),
            r"^`step_rewards` has -0.25, but StepValues weights a step by its share .*; add a constant to all of them",
        ),
        (
            lambda: rollout([[1.0, float("inf")]], group_size=1),
            r"^`rewards` has values that are not finite",
        ),
        (
            lambda: GroupedRewards(torch.ones(1), 1, step_rewards=torch.tensor([[float("nan")]])),
            r"^`step_rewards` has values that are not finite; pass a finite number",
        ),
        (
            lambda: GroupedRewards(torch.ones(2), 2, step_rewards=torch.ones(2)),
            r"^`step_rewards` has shape \(2,\), but `batch time` was expected",
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_estimators_of_completions_ignore_them():
    given = rollout(TWO)
    assert torch.equal(GroupCentered()(given), GroupCentered()(replace(given, step_rewards=None)))
