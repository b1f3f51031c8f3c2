"""Rewards that are changed before another estimator sees them."""

import pytest
import torch

from aggregate_po.advantages import (
    BatchScaled,
    Clamped,
    ComponentNormalized,
    GroupCentered,
    GroupedRewards,
    GroupNormalized,
    LengthCorrected,
    LengthPenalty,
    OverlongShaping,
    WhitenedReturns,
)
from tests.aggregate_po.advantages.estimators import FIXTURE, LENGTHS
from tests.aggregate_po.worked_example import close


def shaped(estimator=None, **options):
    options = {"max_completion_length": 20480, "cache_length": 4096, **options}
    return OverlongShaping(GroupCentered() if estimator is None else estimator, **options)


@pytest.mark.parametrize(
    ("length", "change"),
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (30000, -1.0)],
)
def test_the_penalty_rises_over_the_cache(length, change):
    assert shaped().reward_change(torch.tensor([length])).tolist() == [change]
    assert shaped(penalty=0.5).reward_change(torch.tensor([length])).tolist() == [change / 2]


def test_the_penalty_is_taken_off_before_the_advantages():
    """Rewards (1, 0, 0, 0) become (1, 0, -1/2, -1), of mean -1/8."""
    close(shaped(max_completion_length=40, cache_length=20)(FIXTURE), [1.125, 0.125, -0.375, -0.875])
    assert torch.equal(shaped()(FIXTURE), GroupCentered()(FIXTURE))


@pytest.mark.parametrize("weights", [None, (2.0, 0.5)])
def test_the_penalty_is_one_more_of_several_rewards(weights):
    components = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 4.0]], dtype=torch.float64)
    factors = torch.tensor(weights or (1.0, 1.0), dtype=torch.float64)
    step = GroupedRewards((factors * components).sum(-1), 4, LENGTHS, components, weights)
    penalty = torch.tensor([0.0, 0.0, -0.5, -1.0], dtype=torch.float64)
    explicit = GroupedRewards(
        step.rewards + penalty, 4, LENGTHS, torch.cat([components, penalty.unsqueeze(-1)], -1), (*factors.tolist(), 1.0)
    )
    estimator = shaped(ComponentNormalized(), max_completion_length=40, cache_length=20)
    close(estimator(step), ComponentNormalized()(explicit))


def test_rewards_per_token():
    close(LengthCorrected(GroupNormalized(ddof=0, delta=0.0))(FIXTURE), [1.7320508, -0.5773503, -0.5773503, -0.5773503])
    step = GroupedRewards(torch.tensor([4.0, 0.0, 3.0, 1.0], dtype=torch.float64), 2, torch.tensor([4, 2, 1, 1]))
    close(LengthCorrected(GroupCentered())(step), [0.5, -0.5, 1.0, -1.0])


def test_several_rewards_are_each_taken_per_token():
    components = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    step = GroupedRewards(components.sum(-1), 4, LENGTHS, components)
    per_token = components / LENGTHS.unsqueeze(-1)
    explicit = GroupedRewards(per_token.sum(-1), 4, components=per_token)
    close(LengthCorrected(ComponentNormalized())(step), ComponentNormalized()(explicit))


def test_a_completion_without_tokens_keeps_its_reward():
    step = GroupedRewards(torch.tensor([1.0, 0.0]), 2, torch.tensor([0, 0]))
    assert LengthCorrected(GroupCentered())(step).tolist() == [0.5, -0.5]


def test_wrappers_nest_and_keep_advantages_per_token():
    nested = shaped(LengthCorrected(WhitenedReturns(discount=0.5)), max_completion_length=40, cache_length=20)
    assert nested(FIXTURE).shape == (4, 40)
    inner = LengthCorrected(shaped(BatchScaled(), max_completion_length=40, cache_length=20))
    outer = shaped(LengthCorrected(BatchScaled()), max_completion_length=40, cache_length=20)
    assert not torch.allclose(inner(FIXTURE), outer(FIXTURE) * 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cache_length": 0}, ValueError, r"^`cache_length` is 0; pass 1 or more tokens, at most `max_completion_len"),
        ({"cache_length": 20481}, ValueError, r"at most `max_completion_length`=20480"),
        ({"penalty": -1.0}, ValueError, r"^`penalty` is -1.0; pass 0 or more"),
        ({"estimator": GroupCentered}, TypeError, r"^`estimator` is <class .*GroupCentered'>; pass an instance of"),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        shaped(**arguments)


def test_the_wrapped_estimator_must_be_one():
    with pytest.raises(TypeError, match=r"^`estimator` is <built-in function sum>; pass an instance of a subclass of"):
        LengthCorrected(sum)


def test_each_token_costs_the_same():
    """Rewards (1, 0, 0, 0) of lengths 10, 20, 30, 40 become (0.9, -0.2, -0.3, -0.4), of mean 0."""
    close(LengthPenalty(GroupCentered(), per_token=0.01)(FIXTURE), [0.9, -0.2, -0.3, -0.4])
    # Distances from 20 are 10, 0, 10, 20, so the rewards are (0.9, 0, -0.1, -0.2), of mean 0.15.
    close(LengthPenalty(GroupCentered(), 0.01, target_length=20)(FIXTURE), [0.75, -0.15, -0.25, -0.35])


def test_the_length_penalty_is_a_reward_of_its_own():
    step = GroupedRewards(FIXTURE.rewards, 4, LENGTHS, components=FIXTURE.rewards.unsqueeze(-1))
    costs = -0.01 * LENGTHS.double()
    components = torch.stack([FIXTURE.rewards, costs], dim=-1)
    explicit = GroupedRewards(FIXTURE.rewards + costs, 4, LENGTHS, components)
    close(LengthPenalty(ComponentNormalized(), 0.01)(step), ComponentNormalized()(explicit))


def test_a_length_penalty_is_no_bonus():
    with pytest.raises(ValueError, match=r"^`per_token` is -0.1"):
        LengthPenalty(GroupCentered(), -0.1)


def test_clamped_advantages():
    """The normalized ones are 1.5 and three times -0.5."""
    assert Clamped(GroupNormalized(delta=0.0), 1.0)(FIXTURE).tolist() == [1.0, -0.5, -0.5, -0.5]
    assert Clamped(GroupNormalized(delta=0.0))(FIXTURE).tolist() == [1.5, -0.5, -0.5, -0.5]
    with pytest.raises(ValueError, match=r"^`largest` is 0; pass a positive number"):
        Clamped(GroupNormalized(), 0)
    with pytest.raises(TypeError, match=r"^`estimator` is 5; pass an instance"):
        Clamped(5)
