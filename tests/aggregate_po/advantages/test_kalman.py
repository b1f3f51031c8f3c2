"""The filter in its three orders."""

import itertools
from dataclasses import replace

import pytest
import torch

from aggregate_po.advantages import GroupedRewards, KalmanBaseline
from tests.aggregate_po.advantages.estimators import FIXTURE, one_group
from tests.aggregate_po.worked_example import close


def test_in_the_order_of_sampling():
    close(KalmanBaseline()(FIXTURE), [0.09950272, -7.04812546, -5.75136670, -4.97252265], tolerance=1e-8)


def test_the_order_of_sampling_makes_a_difference():
    close(KalmanBaseline()(one_group(0.0, 0.0, 0.0, 1.0)), [0.0, 0.0, 0.0, 14.987], tolerance=1e-3)


def test_every_prompt_starts_anew():
    rewards = torch.cat([FIXTURE.rewards, FIXTURE.rewards.flip(0), FIXTURE.rewards])
    groups = KalmanBaseline()(GroupedRewards(rewards, 4)).reshape(3, 4)
    assert torch.equal(groups[0], groups[2])
    assert torch.equal(groups[0], KalmanBaseline()(FIXTURE))


def test_two_passes_give_all_completions_one_baseline():
    """Prior 1 at 0 and four observations of variance 1/2: precision 9, mean 2/9 of the sum 3."""
    estimator = KalmanBaseline("two_pass", observation_variance=0.5)
    close(estimator(one_group(2.0, 0.0, 1.0, 0.0)), [3 * (z - 2 / 3) for z in (2.0, 0.0, 1.0, 0.0)], tolerance=1e-6)


def test_two_passes_do_not_depend_on_the_order():
    rewards = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    estimator = KalmanBaseline("two_pass")
    close(estimator(GroupedRewards(rewards[order], 8)), estimator(GroupedRewards(rewards, 8))[order], tolerance=1e-12)
    sampled = KalmanBaseline()
    assert not torch.allclose(sampled(GroupedRewards(rewards[order], 8)), sampled(GroupedRewards(rewards, 8))[order])


def test_two_passes_end_where_the_filter_without_drift_does():
    """The last completion sees all rewards in either."""
    step = one_group(1.0, 0.25, 0.0, 0.5)
    filtered = KalmanBaseline(process_variance=0.0)(step)
    close(KalmanBaseline("two_pass")(step)[-1], filtered[-1])


def test_shuffled_is_the_filter_in_an_order_of_its_own():
    """Some order of the four gives the same numbers, each for its own reward."""
    step = one_group(1.0, 0.25, 0.0, 0.5)
    orders = [list(order) for order in itertools.permutations(range(4))]
    sampled = [KalmanBaseline()(replace(step, rewards=step.rewards[order])) for order in orders]
    seen = set()
    for seed in range(40):
        result = KalmanBaseline("shuffled")(replace(step, seed=seed))
        matches = [tuple(order) for order, one in zip(orders, sampled, strict=True) if torch.equal(one, result[order])]
        assert len(matches) == 1
        seen.update(matches)
        assert torch.equal(result, KalmanBaseline("shuffled")(replace(step, seed=seed)))
    assert len(seen) > 10


def test_prompts_are_shuffled_differently():
    rewards = torch.tensor([1.0, 0.25, 0.0, 0.5]).repeat(16)
    groups = KalmanBaseline("shuffled")(GroupedRewards(rewards, 4)).reshape(16, 4)
    assert len({tuple(group.tolist()) for group in groups}) > 4


def test_shuffling_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    KalmanBaseline("shuffled")(FIXTURE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("order", ["sampled", "shuffled", "two_pass"])
def test_groups_of_one_and_equal_rewards(order):
    """Pulled toward the start at 0: the gain of one step is 1.00001 / 1.01001, or 1 / 1.01 without drift."""
    alone = KalmanBaseline(order)(GroupedRewards(torch.tensor([1.0, 0.0], dtype=torch.float64), 1))
    close(alone, [0.09950272 if order != "two_pass" else (1 / 101) / (1 / 101) ** 0.5, 0.0], tolerance=1e-6)
    equal = KalmanBaseline(order)(one_group(1.0, 1.0, 1.0, 1.0))
    assert (equal > 0).all()
    assert KalmanBaseline(order)(one_group(0.0, 0.0, 0.0, 0.0)).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "reversed"}, r"^`order` is 'reversed'; pass one of sampled, shuffled, two_pass"),
        ({"process_variance": -1.0}, r"^`process_variance` is -1.0; pass 0 or more"),
        ({"observation_variance": 0.0}, r"^`observation_variance` is 0.0; pass a positive number"),
        ({"prior_variance": 0.0}, r"^`prior_variance` is 0.0; pass a positive number"),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        KalmanBaseline(**arguments)
