"""The filter in its orders, and its predictions."""

import itertools
from dataclasses import replace

import pytest
import torch

from aggregate_po.advantages import GroupedRewards, KalmanBaseline, KalmanInnovation
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


def test_innovations_by_hand():
    """Without drift, prior and noise of variance 1: predictions 0, 1 and 2/3 of variances 1, 1/2 and 1/3, plus 1."""
    estimator = KalmanInnovation(process_variance=0.0, observation_variance=1.0)
    rewards = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    close(estimator(GroupedRewards(rewards, 3)), [2 / 2**0.5, -1 / 1.5**0.5, (1 / 3) / (4 / 3) ** 0.5], tolerance=1e-15)


def test_innovations_of_the_worked_group():
    """The first prediction is 0 of variance 1.01001, the second 0.9901 of variance 0.0199; step by step."""
    baseline, variance, expected = 0.0, 1.0, []
    for reward in (1.0, 0.0, 0.0, 0.0):
        variance += 1e-5
        expected.append((reward - baseline) / (variance + 1e-2) ** 0.5)
        gain = variance / (variance + 1e-2)
        baseline, variance = baseline + gain * (reward - baseline), (1 - gain) * variance
    close(KalmanInnovation()(FIXTURE), expected, tolerance=1e-12)
    close(KalmanInnovation()(FIXTURE)[:2], [0.99503226, -7.01668904], tolerance=1e-8)


def covariance(size, process_variance):
    """Of rewards around a baseline of variance 1 that drifts by a random walk, with noise of variance 1/4."""
    steps = torch.arange(1.0, size + 1).double()
    return 1 + process_variance * torch.minimum(steps, steps.unsqueeze(-1)) + torch.eye(size).double() / 4


@pytest.mark.parametrize("process_variance", [0.0, 0.3])
def test_innovations_are_the_rewards_made_uncorrelated(process_variance):
    """By the Cholesky factor of the covariance that the filter assumes."""
    rewards = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    factor = torch.linalg.cholesky(covariance(6, process_variance))
    estimator = KalmanInnovation(process_variance=process_variance, observation_variance=0.25)
    whitened = torch.linalg.solve_triangular(factor, rewards.unsqueeze(-1), upper=False).squeeze(-1)
    close(estimator(GroupedRewards(rewards, 6)), whitened, tolerance=1e-12)


def test_leave_one_out_predicts_a_reward_from_the_others():
    """By hand: three others of precision 2 each and the prior of precision 1 have variance 1/7, and a sum of 1, ..."""
    estimator = KalmanInnovation("leave_one_out", observation_variance=0.5)
    rewards = (2.0, 0.0, 1.0, 0.0)
    expected = [(z - (3 - z) * 2 / 7) / (1 / 7 + 1 / 2) ** 0.5 for z in rewards]
    close(estimator(one_group(*rewards)), expected, tolerance=1e-14)
    # And as the residual of each reward given the others under the covariance that the filter assumes.
    rewards = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    precision = torch.linalg.inv(covariance(6, 0.0))
    conditional = (precision @ rewards) / precision.diagonal().sqrt()
    estimator = KalmanInnovation("leave_one_out", observation_variance=0.25)
    close(estimator(GroupedRewards(rewards, 6)), conditional, tolerance=1e-12)


def test_leave_one_out_does_not_depend_on_the_order_and_the_last_innovation_is_one():
    rewards = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    estimator, ordered = KalmanInnovation("leave_one_out"), KalmanInnovation(process_variance=0.0)
    close(estimator(GroupedRewards(rewards[order], 8)), estimator(GroupedRewards(rewards, 8))[order], tolerance=1e-12)
    close(estimator(GroupedRewards(rewards, 8))[-1], ordered(GroupedRewards(rewards, 8))[-1], tolerance=1e-10)


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


def test_each_form_has_its_order_free_variant():
    with pytest.raises(ValueError, match=r"^`order` is 'two_pass'; pass one of sampled, shuffled, leave_one_out"):
        KalmanInnovation("two_pass")
