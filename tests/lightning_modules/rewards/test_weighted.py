"""Several rewards: their sum, their names, and what goes wrong with one of them."""

import functools
import math
import re
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch

from lightning_modules.rewards import BatchReward, boxed_answer
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
    components = rewards.scores(COMPLETIONS, EXAMPLES).components
    assert components.tolist() == [[1.0], [3.0]]
    assert rewards.total(components).tolist() == [1.0, 3.0]
    assert (rewards.names, rewards.weights) == (["length"], (1.0,))
    assert components.dtype == rewards.total(components).dtype == torch.float64


@pytest.mark.parametrize(("weights", "total"), [(None, [1.25, 3.25]), ([2, -1.0], [1.75, 5.75])])
def test_several_rewards_are_summed_by_their_weights(weights, total):
    rewards = WeightedRewards([length, Constant()], weights)
    components = rewards.scores(COMPLETIONS, EXAMPLES).components
    assert components.tolist() == [[1.0, 0.25], [3.0, 0.25]]
    assert rewards.total(components).tolist() == total


class Longest(BatchReward):
    """1 for the longest completions; it cannot be called without any."""

    def __call__(self, completions, examples):
        longest = max(map(len, completions))
        return [float(len(completion) == longest) for completion in completions]


def test_no_completion_has_no_rewards_and_asks_no_reward():
    """A rank without prompts in the last batch of an evaluation has none."""
    rewards = WeightedRewards([length, Longest()])
    assert rewards.scores([], []).components.shape == (0, 2)
    assert rewards.total(rewards.scores([], []).components).shape == (0,)


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
    message = r"^`reward` <lambda> gave nan, which is not finite, for the completion 'a' of \{'prompt': '1'\}; return"
    with pytest.raises(ValueError, match=message):
        rewards.scores(COMPLETIONS, EXAMPLES)


def test_one_of_several_that_raises_is_named():
    def failing(completion, example):
        raise RuntimeError("no verdict")

    with pytest.raises(RuntimeError, match="no verdict") as raised:
        WeightedRewards([length, failing]).scores(COMPLETIONS, EXAMPLES)
    assert raised.value.__notes__ == ["raised by `reward` failing for the completion 'a' of {'prompt': '1'}"]


NUMBERS = [
    (1, 1.0),
    (True, 1.0),
    (0.1, 0.1),
    (2**53 + 2, float(2**53 + 2)),
    (10**308, 1e308),
    (1e39, 1e39),
    (-5e-324, -5e-324),
    (Decimal("0.1"), 0.1),
    (Fraction(1, 3), 1 / 3),
    (Fraction(10**400, 10**400 + 1), 1.0),
    (np.bool_(True), 1.0),
    (np.isclose(1, 1), 1.0),
    (np.float16(0.5), 0.5),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.longdouble("0.5"), 0.5),
    (np.int8(-3), -3.0),
    (np.uint64(2**64 - 1), 2.0**64),
    (np.array(0.25), 0.25),
    (np.array(Decimal("0.1")), 0.1),
    (np.array([[0.75]]), 0.75),
    (torch.tensor(1.5), 1.5),
    (torch.tensor(0.1, dtype=torch.float64), 0.1),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (torch.tensor(True), 1.0),
    (torch.tensor([2]), 2.0),
    (torch.tensor(1.0, requires_grad=True), 1.0),
]


@pytest.mark.parametrize(("value", "expected"), NUMBERS, ids=lambda value: f"{type(value).__name__} {value}"[:40])
def test_every_finite_real_number_is_taken_in_float64(value, expected):
    components = WeightedRewards(lambda completion, example: value).scores(["x"], [{"prompt": "1"}]).components
    assert components.dtype == torch.float64
    assert components.item() == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (10**400, r"1000\S+0000, which is beyond the range of float64, \+-1.8e308"),
        (10**5000, "an integer of 16610 bits, which is beyond the range of float64"),
        (-(10**400), "beyond the range"),
        (Decimal("1e400"), r"Decimal\('1E\+400'\), which is beyond the range"),
        (Fraction(10**400), "beyond the range"),
        (np.longdouble("1e400"), "beyond the range"),
        (math.nan, "nan, which is not finite"),
        (-math.inf, "-inf, which is not finite"),
        (Decimal("NaN"), "which is not finite"),
        (Decimal("sNaN"), "which is not a real number"),
        (Decimal("Infinity"), "which is not finite"),
        (np.float32("inf"), "which is not finite"),
        (torch.tensor(math.nan), r"tensor\(nan\), which is not finite"),
        (None, r"None \(NoneType\), which is not a real number"),
        ("1.0", r"'1.0' \(str\), which is not a real number"),
        (b"1", r"b'1' \(bytes\), which is not a real number"),
        (1j, r"1j \(complex\), which is not a real number"),
        (np.complex64(1), "which is not a real number"),
        (torch.tensor(1j), "which is not a real number"),
        ([1.0], r"\[1.0\] \(list\), which is not a real number"),
        ({"score": 1.0}, "dict"),
        (np.str_("1"), r"\(str\), which is not a real number"),
        (np.array([1.0, 2.0]), "which is not a single number"),
        (np.array([]), "which is not a single number"),
        (torch.ones(2), "which is not a single number"),
        (torch.ones(10_000), "which is not a single number"),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_is_no_finite_real_number_is_refused_with_the_reason(value, reason):
    def graded(completion, example):
        return value

    with pytest.raises(ValueError, match=reason) as raised:
        WeightedRewards([length, graded]).scores(["x" * 10_000], [{"prompt": "17 + 25?"}])
    message = str(raised.value)
    assert message.startswith("`reward` graded gave ")
    assert "17 + 25?" in message
    assert message.endswith("; return one finite number.")
    assert len(message) < 1000


def test_differences_that_float32_does_not_have_are_kept():
    rewards = WeightedRewards([lambda completion, example: 1 + 1e-9 * len(completion), Constant()], [1.0, 0.1])
    total = rewards.total(rewards.scores(COMPLETIONS, EXAMPLES).components)
    assert total.dtype == torch.float64
    assert float(total[1] - total[0]) == pytest.approx(2e-9, rel=1e-6)


def test_terms_that_cancel_leave_no_rounding_error():
    rewards = WeightedRewards([lambda *_: 0.1 + 0.2, lambda *_: 0.3], [1.0, -1.0])
    assert rewards.total(rewards.scores(["a"], EXAMPLES[:1]).components).tolist() == [0.0]


def test_each_call_gets_its_own_copy_of_the_example():
    seen = []

    def destructive(completion, example):
        seen.append((example["prompt"], list(example["tests"]), "mark" in example))
        example["tests"].clear()
        example.update(prompt="gone", mark=True)
        return 1.0

    shared = {"prompt": "1", "tests": [1, 2]}
    examples = [shared, shared, MappingProxyType(shared)]
    rewards = WeightedRewards([destructive, destructive])
    rewards.scores(["a", "b", "c"], examples)
    assert seen == [("1", [1, 2], False)] * 6
    assert shared == {"prompt": "1", "tests": [1, 2]}


@pytest.mark.parametrize("status", [SystemExit(), SystemExit(0), SystemExit(3), SystemExit("bye"), GeneratorExit()])
def test_a_reward_that_would_end_the_process_is_an_error(status):
    def leaving(completion, example):
        raise status

    message = rf"^`reward` leaving raised {re.escape(repr(status))} for the completion 'a' of .*; return a number, and"
    with pytest.raises(RuntimeError, match=message):
        WeightedRewards(leaving).scores(["a"], EXAMPLES[:1])


def test_an_interrupt_names_the_reward_that_it_arrived_in():
    def slow(completion, example):
        raise KeyboardInterrupt

    with (
        pytest.warns(UserWarning, match="^`reward` slow was interrupted for the completion 'a'"),
        pytest.raises(KeyboardInterrupt),
    ):
        WeightedRewards([length, slow]).scores(["a"], EXAMPLES[:1])
