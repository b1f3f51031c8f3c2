"""The fit of a beta distribution to success rates, and every case in which there is nothing to fit."""

import math

import pytest
import torch

from aggregate_po.advantages import BetaNormalized, GroupCentered, GroupedRewards, GroupNormalized
from aggregate_po.advantages.beta import beta_density, fitted_shape
from tests.aggregate_po.worked_example import close

# Success rates 1/4, 3/4, 1/2 and 1.
REWARDS = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64)
RATES = torch.tensor([0.25, 0.75, 0.5, 1.0], dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def advantages(rewards, group_size=4, **options):
    return BetaNormalized(**options)(GroupedRewards(torch.as_tensor(rewards), group_size))


def test_the_shape_is_fitted_by_moments():
    alpha, beta = fitted_shape(RATES)
    close(alpha, 1.26041667, tolerance=1e-8)
    close(beta, 1.15625, tolerance=1e-8)


def test_the_density():
    alpha, beta = fitted_shape(RATES)
    close(beta_density(RATES, alpha, beta), [0.9939373, 1.11444623, 1.11747537, 0.0], tolerance=1e-7)
    close(beta_density(number(0.25), number(1.5), number(1.5)), 1.10265779, tolerance=1e-8)
    close(beta_density(number([0.0, 0.5, 1.0]), number(1.0), number(1.0)), [1.0, 1.0, 1.0])


def test_four_prompts():
    weights = [1.00609968, 0.89730664, 0.89487431]
    expected = [0.75 * weights[0]] + [-0.25 * weights[0]] * 3 + [0.25 * weights[1]] * 3 + [-0.75 * weights[1]]
    expected += [0.5 * weights[2]] * 2 + [-0.5 * weights[2]] * 2 + [0.0] * 4
    close(advantages(REWARDS), expected)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_at_three_halves_it_is_the_normalized_group_up_to_a_factor(rate):
    """The density there is 8/pi times the standard deviation of the population."""
    group = (torch.arange(4) < 4 * rate).double()
    normalized = GroupNormalized(ddof=0, delta=0.0)(GroupedRewards(group, 4))
    centered = GroupCentered()(GroupedRewards(group, 4))
    close(centered / beta_density(number(rate), number(1.5), number(1.5)), normalized * math.pi / 8)


# Where nothing can be fitted the shape is flat, and what is left is the centered reward.
DEGENERATE = {
    "one prompt": [1.0, 0.0, 0.0, 0.0],
    "the same rate in all prompts": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "rates further apart than any fit": [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    "no success": [0.0] * 8,
    "success only": [1.0] * 8,
}


@pytest.mark.parametrize("rewards", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_without_a_fit_rewards_are_centered(rewards):
    step = GroupedRewards(torch.tensor(rewards), 4)
    assert torch.equal(BetaNormalized()(step), GroupCentered()(step))


def test_the_rates_of_a_negative_fit():
    """Rates 0, 0, 1: mean 1/3 and variance 1/3 against 2/9, so that a and b are negative."""
    assert [shape.item() for shape in fitted_shape(number([0.0, 0.0, 1.0]))] == [1.0, 1.0]


def test_rates_that_differ_by_rounding_only_are_the_same():
    group = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(50)]
    rewards = torch.cat([group[order] for order in orders])
    assert 0 < rewards.reshape(50, 6).mean(dim=-1).var() < 1e-30
    step = GroupedRewards(rewards, 6)
    assert torch.equal(BetaNormalized()(step), GroupCentered()(step))


def test_groups_of_one_have_no_advantage():
    assert advantages([1.0, 0.0, 1.0, 0.5], group_size=1).tolist() == [0.0] * 4


def test_the_weight_is_bounded():
    """Narrow rates about 1/2 and one far out, whose density is below 1e-6."""
    far = torch.zeros(20)
    far[0] = 1.0
    rewards = torch.cat([(torch.arange(20) % 2).float().repeat(400), far])
    result = advantages(rewards, group_size=20)
    assert result.isfinite().all()
    assert result[-20].item() == pytest.approx(0.95e6)


@pytest.mark.parametrize("low", [-1.0, 0.0, -3e38])
@pytest.mark.parametrize("high", [1.0, 2.0, 3e38])
def test_rewards_of_another_range_are_mapped_linearly(low, high):
    if (low, high) == (0.0, 1.0):
        return
    mapped = torch.where(REWARDS == 1, high, low).float()
    close(advantages(mapped), advantages(REWARDS), tolerance=1e-6)


def test_rewards_between_zero_and_one_stay_as_they_are():
    rewards = number([0.5, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.5])
    weights = 1 / beta_density(number([0.3125, 0.6875]), *fitted_shape(number([0.3125, 0.6875])))
    close(advantages(rewards)[:4], weights[0] * number([0.1875, -0.0625, -0.0625, -0.0625]))


def test_a_known_range_maps_every_rollout_alike():
    close(advantages(2 * REWARDS - 1, reward_range=(-1.0, 1.0)), advantages(REWARDS))
    # By its own range this rollout would be stretched.
    part = torch.where(REWARDS == 1, 0.5, 0.0).double()
    close(advantages(part, reward_range=(-1.0, 1.0)), advantages((part + 1) / 2))
    assert advantages(torch.full((8,), -1.0)).tolist() == [0.0] * 8


def test_errors_name_the_argument_and_the_remedy():
    with pytest.raises(ValueError, match=r"^`reward_range` is \(1.0, 1.0\); pass the smallest and the largest reward"):
        BetaNormalized(reward_range=(1.0, 1.0))
    with pytest.raises(
        ValueError, match=r"^`rewards` lie between 0.0 and 2.0, but `reward_range` is \(0.0, 1.0\); widen"
    ):
        advantages([2.0, 0.0, 0.0, 1.0], reward_range=(0.0, 1.0))
