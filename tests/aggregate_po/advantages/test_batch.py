"""Estimators of a whole rollout, by hand and to the printed digits."""

from dataclasses import replace

import pytest
import torch

from aggregate_po.advantages import (
    BatchScaled,
    ComponentNormalized,
    GroupedRewards,
    GroupNormalized,
    WhitenedCentered,
    WhitenedReturns,
)
from tests.aggregate_po.advantages.estimators import WHITENED
from tests.aggregate_po.worked_example import close

TWO_GROUPS = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def two_groups(lengths=1):
    return GroupedRewards(TWO_GROUPS, 4, lengths=torch.full((8,), lengths))


def test_one_standard_deviation_serves_all_groups():
    """The squared deviations of all eight rewards sum to 2, so the variance is 2/7."""
    scale = (2 / 7) ** 0.5
    expected = [0.75 / scale] + [-0.25 / scale] * 3 + [0.25 / scale] * 3 + [-0.75 / scale]
    close(BatchScaled(delta=0.0)(two_groups()), expected)
    close(BatchScaled(delta=scale)(two_groups()), [advantage / 2 for advantage in expected])


def test_the_standard_deviation_is_that_of_the_rewards_and_not_of_the_centered_ones():
    step = GroupedRewards(torch.tensor([1.0, 0.0, 11.0, 10.0], dtype=torch.float64), 2)
    scale = (101 / 3) ** 0.5  # deviations of 4.5 and 5.5
    close(BatchScaled(delta=0.0)(step), [0.5 / scale, -0.5 / scale, 0.5 / scale, -0.5 / scale])


def test_centered_rewards_whitened_over_tokens():
    close(WhitenedCentered()(two_groups()), [1.62018517, *[-0.54006172] * 3, *[0.54006172] * 3, -1.62018517])


def test_with_long_completions_the_variance_is_that_of_the_population():
    long = [1.7320508, *[-0.5773503] * 3, *[0.5773503] * 3, -1.7320508]
    close(WhitenedCentered()(two_groups(lengths=10_000_000)), long, tolerance=1e-7)


def test_a_completion_counts_once_for_each_token():
    """Centered rewards 1/2, -1/2 on 1 and 3 tokens: mean -1/4, variance (9/16 + 3/16) / 3 = 1/4."""
    step = GroupedRewards(torch.tensor([1.0, 0.0], dtype=torch.float64), 2, lengths=torch.tensor([1, 3]))
    close(WhitenedCentered(variance_delta=0.0)(step), [1.5, -0.5])
    close(WhitenedReturns(variance_delta=0.0)(step), [1.5, -0.5])
    # A group of equal rewards next to it keeps minus the mean over tokens.
    both = GroupedRewards(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2, lengths=torch.tensor([1, 3, 2, 2]))
    assert (WhitenedCentered()(both)[2:] > 0).all()


def test_the_delta_is_added_to_the_variance():
    step = GroupedRewards(torch.tensor([1.0, 0.0], dtype=torch.float64), 2, lengths=torch.tensor([1, 3]))
    close(WhitenedCentered(variance_delta=0.75)(step), [0.75, -0.25])


def test_returns_of_tokens_are_discounted_from_the_last_one():
    """Returns 1/4, 1/2, 1 and 0: mean 7/16, squared deviations 9/256, 1/256, 81/256 and 49/256."""
    step = GroupedRewards(torch.tensor([1.0, 0.0], dtype=torch.float64), 2, lengths=torch.tensor([3, 1]))
    scale = 16 * (140 / 256 / 3) ** 0.5
    expected = [[-3 / scale, 1 / scale, 9 / scale], [-7 / scale, 0.0, 0.0]]
    close(WhitenedReturns(discount=0.5, variance_delta=0.0)(step), expected)
    # With 0 only the last token of each is rewarded.
    close(WhitenedReturns(discount=0.0, variance_delta=0.0)(step), [[-0.5, -0.5, 1.5], [-0.5, 0.0, 0.0]])


def test_a_discount_near_one_comes_near_to_none():
    step = replace(two_groups(), lengths=torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]))
    tokens = WhitenedReturns(discount=1 - 1e-12)(step)
    mask = torch.arange(8) < step.lengths.unsqueeze(-1)
    close(tokens, torch.where(mask, WhitenedReturns()(step).unsqueeze(-1), 0))


@pytest.mark.parametrize("estimator", WHITENED, ids=str)
def test_what_is_whitened_has_mean_zero_and_variance_one(estimator):
    torch.manual_seed(0)
    rewards, lengths = torch.randn(12, dtype=torch.float64), torch.randint(1, 9, (12,))
    step = GroupedRewards(rewards, 4, lengths, components=rewards.unsqueeze(-1))
    advantages = estimator(step)
    if advantages.ndim == 2:
        assert advantages.shape == (12, lengths.max())
        tokens = advantages[torch.arange(lengths.max()) < lengths.unsqueeze(-1)]
    elif isinstance(estimator, ComponentNormalized):
        tokens = advantages
    else:
        tokens = advantages.repeat_interleave(lengths)
    close(tokens.mean(), 0.0)
    close(tokens.var(), 1.0, tolerance=1e-6)


def test_several_rewards_are_normalized_one_by_one():
    """Within the group the first gives (3, -1, -1, -1) / 2 and the second, a thousandth as large, the same reversed."""
    components = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.001]], dtype=torch.float64)
    weights = (1.0, 2.0)
    total = (components * torch.tensor(weights)).sum(dim=-1)
    step = GroupedRewards(total, 4, components=components, component_weights=weights)
    # (1.5 - 1, -1.5, -1.5, -0.5 + 3): mean 0, squares 0.25 + 2.25 + 2.25 + 6.25 = 11.
    scale = (11 / 3) ** 0.5
    close(ComponentNormalized(delta=0.0)(step), [0.5 / scale, -1.5 / scale, -1.5 / scale, 2.5 / scale])
    unweighted = replace(step, rewards=components.sum(dim=-1), component_weights=None)
    close(ComponentNormalized(delta=0.0)(unweighted), [3**0.5 / 2, -(3**0.5) / 2, -(3**0.5) / 2, 3**0.5 / 2])


def test_one_reward_is_normalized_and_whitened():
    step = replace(two_groups(), components=TWO_GROUPS.unsqueeze(-1))
    normalized = GroupNormalized()(step)
    close(ComponentNormalized()(step), (normalized - normalized.mean()) / normalized.std())


@pytest.mark.parametrize("taken_off", [0.5, 1e-3, -1.0])
def test_what_was_taken_off_the_total_is_not_lost_without_a_word(taken_off):
    components = torch.rand(4, 2)
    with pytest.raises(
        ValueError, match=r"^`rewards` is not the weighted sum of `components`, but ComponentNormalized"
    ):
        ComponentNormalized()(GroupedRewards(components.sum(dim=-1) - taken_off, 4, components=components))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_total_may_be_rounded(dtype):
    torch.manual_seed(0)
    components, weights = torch.randn(64, 5).to(dtype), (0.1, 0.7, 1.3, 2.9, 0.3)
    total = (components * torch.tensor(weights, dtype=dtype)).sum(dim=-1)
    step = GroupedRewards(total, 4, components=components, component_weights=weights)
    assert ComponentNormalized()(step).any()


@pytest.mark.parametrize("estimator", [*WHITENED, BatchScaled(), BatchScaled(delta=0.0)], ids=str)
@pytest.mark.parametrize("reward", [0.1, -1 / 3, 1e30])
@pytest.mark.parametrize("batch", [1, 6])
def test_rewards_that_are_all_equal_have_exactly_no_advantage(estimator, reward, batch):
    rewards = torch.full((batch,), reward)
    lengths = torch.arange(1, batch + 1) if reward != 0.1 else torch.ones(batch, dtype=torch.long)
    step = GroupedRewards(rewards, batch, lengths, components=rewards.unsqueeze(-1))
    advantages = estimator(step)
    if getattr(estimator, "discount", 1) != 1 and lengths.max() > 1:
        assert advantages.isfinite().all()  # the returns differ from token to token
    else:
        assert not advantages.any()


@pytest.mark.parametrize("estimator", [WhitenedReturns(), WhitenedReturns(discount=0.5), WhitenedCentered()], ids=str)
def test_completions_without_tokens_have_no_advantage_and_do_not_count(estimator):
    rewards, lengths = torch.tensor([1.0, 0.0, 5.0, 0.5]), torch.tensor([1, 3, 0, 2])
    advantages = estimator(GroupedRewards(rewards, 1 if isinstance(estimator, WhitenedReturns) else 4, lengths))
    assert not advantages[2].any()
    assert advantages[0].any()
    none = estimator(GroupedRewards(rewards, 4, torch.zeros(4, dtype=torch.long)))
    assert not none.any()
    if isinstance(estimator, WhitenedReturns):
        kept = [0, 1, 3]
        close(estimator(GroupedRewards(rewards[kept], 1, lengths[kept])), advantages[kept])


def test_arguments_out_of_range_are_named():
    for estimator in (BatchScaled, ComponentNormalized):
        with pytest.raises(ValueError, match=r"^`delta` is -1; pass 0 or more"):
            estimator(delta=-1)
    for estimator in (WhitenedCentered, WhitenedReturns):
        with pytest.raises(ValueError, match=r"^`variance_delta` is -1; pass 0 or more"):
            estimator(variance_delta=-1)
    for discount in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^`discount` is {discount}; pass a number from 0 to 1"):
            WhitenedReturns(discount=discount)
