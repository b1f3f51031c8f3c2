"""Several rewards: their sum, their names, and what goes wrong with one of them."""

import functools
import math

import pytest
import torch

from lightning_modules.rewards import boxed_answer
from lightning_modules.rewards.weighted import WeightedRewards


def length(completion, example):
    return len(completion)


def shorter_than(completion, example, limit):
    return len(completion) < limit


class Constant:
    def __call__(self, completion, example):
        return 0.25


COMPLETIONS, EXAMPLES = ["a", "bcd"], [{"prompt": "1"}, {"prompt": "2"}]


def test_one_reward_is_the_total():
    rewards = WeightedRewards(length)
    components = rewards.components(COMPLETIONS, EXAMPLES)
    assert components.tolist() == [[1.0], [3.0]]
    assert rewards.total(components).tolist() == [1.0, 3.0]
    assert (rewards.names, rewards.weights) == (["length"], (1.0,))
    assert components.dtype == rewards.total(components).dtype == torch.float32


@pytest.mark.parametrize(("weights", "total"), [(None, [1.25, 3.25]), ([2, -1.0], [1.75, 5.75])])
def test_several_rewards_are_summed_by_their_weights(weights, total):
    rewards = WeightedRewards([length, Constant()], weights)
    components = rewards.components(COMPLETIONS, EXAMPLES)
    assert components.tolist() == [[1.0, 0.25], [3.0, 0.25]]
    assert rewards.total(components).tolist() == total


def test_no_completion_has_no_rewards():
    rewards = WeightedRewards([length, length])
    assert rewards.components([], []).shape == (0, 2)
    assert rewards.total(rewards.components([], [])).shape == (0,)


def test_rewards_are_named_by_their_functions():
    partial = functools.partial(shorter_than, limit=3)
    rewards = WeightedRewards([boxed_answer, partial, Constant(), functools.partial(shorter_than, limit=9)])
    assert rewards.names == ["boxed_answer", "shorter_than_1", "Constant", "shorter_than_2"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, r"^`reward` is empty; pass a function of a completion and its example, or several"),
        ((0.5,), TypeError, r"^`reward` has 0.5; pass a function"),
        (([length, "length"],), TypeError, r"^`reward` has 'length'; pass a function"),
        (([length], [1.0, 2.0]), ValueError, r"^`reward_weights` is \[1.0, 2.0\], but `reward` has 1; pass one finite"),
        ((length, [math.nan]), ValueError, r"^`reward_weights` is \[nan\]"),
    ],
)
def test_errors_name_argument_value_and_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        WeightedRewards(*arguments)


def test_one_of_several_that_is_no_number_is_named():
    rewards = WeightedRewards([length, lambda completion, example: math.nan])
    with pytest.raises(ValueError, match=r"^`reward` <lambda> gave nan for 'a'; it must return a finite number"):
        rewards.components(COMPLETIONS, EXAMPLES)


def test_one_of_several_that_raises_is_named():
    def failing(completion, example):
        raise RuntimeError("no verdict")

    with pytest.raises(RuntimeError, match="no verdict") as raised:
        WeightedRewards([length, failing]).components(COMPLETIONS, EXAMPLES)
    assert raised.value.__notes__ == ["raised by `reward` failing for the completion 'a' of {'prompt': '1'}"]
