"""Asynchronous rewards: order, bound, time limit, errors."""

import asyncio
import functools

import pytest

from lightning_modules.rewards import BatchReward, ConcurrentReward, RewardPool, Verdict, WeightedRewards
from lightning_modules.rewards.concurrent import is_async
from lightning_modules.rewards.killable import killable

EXAMPLES = [{"prompt": str(number)} for number in range(12)]
TEXTS = ["x" * number for number in range(12)]


async def length(completion, example):
    await asyncio.sleep(0.01 * (len(completion) % 3))
    return len(completion)


class Judge:
    async def __call__(self, completion, example):
        return 0.5


class Batch(BatchReward):
    """Gives the values that it holds, and keeps what it was called with."""

    def __init__(self, values):
        self.values, self.calls, self.closed = values, [], 0

    def __call__(self, completions, examples):
        self.calls.append((list(completions), [dict(example) for example in examples]))
        for example in examples:
            example["mark"] = True
        return self.values

    def close(self):
        self.closed += 1


def plain(completion, example):
    return 1.0


def test_asynchronous_functions_are_rewards_like_others():
    rewards = WeightedRewards([length, Judge(), functools.partial(length), plain, ConcurrentReward(length)])
    assert rewards.names == ["length_1", "Judge", "length_2", "plain", "length_3"]
    components = rewards.scores(TEXTS, EXAMPLES).components
    assert components.tolist() == [[number, 0.5, number, 1.0, number] for number in range(12)]


def test_at_most_that_many_run_at_the_same_time():
    running, most = 0, 0

    async def counted(completion, example):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return 1.0

    assert ConcurrentReward(counted, concurrency=5)(TEXTS, EXAMPLES) == [1.0] * 12
    assert most == 5


def test_a_verdict_that_takes_too_long_fails_alone():
    async def sleepy(completion, example):
        await asyncio.sleep(10 if completion == "xx" else 0)
        return 1.0

    verdicts = ConcurrentReward(sleepy, limit=0.1)(TEXTS[:4], EXAMPLES[:4])
    assert verdicts == [1.0, 1.0, Verdict(None, "time", "0.1 s"), 1.0]


def test_an_error_names_reward_and_completion():
    async def failing(completion, example):
        if completion == "xx":
            raise TimeoutError("of its own")
        await asyncio.sleep(10)

    with pytest.raises(TimeoutError, match="of its own") as raised:
        WeightedRewards(failing).scores(TEXTS[:4], EXAMPLES[:4])
    assert raised.value.__notes__ == ["raised by `reward` failing for the completion 'xx' of {'prompt': '2'}"]


def test_a_running_event_loop_is_left_alone():
    async def notebook():
        return ConcurrentReward(length)(TEXTS[:3], EXAMPLES[:3])

    assert asyncio.run(notebook()) == [0, 1, 2]


@pytest.mark.parametrize("reward", [length, Judge(), functools.partial(functools.partial(length))])
def test_what_is_asynchronous(reward):
    assert is_async(reward)
    with pytest.raises(TypeError, match=r"^`reward` is .*, which scores many completions at a time; pass it without"):
        RewardPool(reward)


def test_other_functions_are_refused():
    assert not is_async(plain)
    with pytest.raises(TypeError, match=r"^`reward` is <function plain.*; pass a function that is defined with `async"):
        ConcurrentReward(plain)


# Batches


def test_a_batch_is_scored_in_one_call_with_copies_of_the_examples():
    batch = Batch([0, 1.5, Verdict(0.25)])
    examples = [dict(example) for example in EXAMPLES[:3]]
    rewards = WeightedRewards([batch, plain])
    scores = rewards.scores(TEXTS[:3], examples)
    assert scores.components.tolist() == [[0.0, 1.0], [1.5, 1.0], [0.25, 1.0]]
    assert scores.causes == [[None, None]] * 3
    assert batch.calls == [(TEXTS[:3], EXAMPLES[:3])]
    assert examples == EXAMPLES[:3]
    rewards.close()
    assert batch.closed == 1


def test_a_failed_verdict_warns_once():
    rewards = WeightedRewards(Batch([Verdict(None, "exit", "exit status 3"), Verdict(None, "time")]))
    with pytest.warns(
        UserWarning, match="`reward` Batch failed for the completion '' of .*: exit exit status 3"
    ) as all_:
        scores = [rewards.scores(TEXTS[:2], EXAMPLES[:2]) for _ in range(2)][1]
    assert len(all_) == 1
    assert (scores.components.tolist(), scores.causes) == ([[0.0], [0.0]], [["exit"], ["time"]])
    assert scores.failed.tolist() == [True, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"^`reward` Batch gave 1 values for 2 completions; return one for each"),
        ([1.0, None], r"^`reward` Batch gave None .*for the completion 'x' of"),
        ([1.0, Verdict(float("nan"))], r"^`reward` Batch gave nan, which is not finite, for the completion 'x'"),
        ([1.0, Verdict(None)], r"^`reward` Batch gave None .*for the completion 'x' of"),
    ],
)
def test_what_is_no_list_of_rewards_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        WeightedRewards(Batch(values)).scores(TEXTS[:2], EXAMPLES[:2])


def test_a_pool_has_the_name_of_its_reward():
    assert WeightedRewards([RewardPool(plain), plain]).names == ["plain_1", "plain_2"]


async def fragile(completion, example):
    if completion == "xx":
        raise ArithmeticError("no judge")
    return float(len(completion))


def test_where_a_failure_costs_one_verdict_so_does_an_exception():
    first, second, third = killable(fragile, workers=2, limit=5.0)(TEXTS[1:4], EXAMPLES[1:4])
    assert (first, third) == (1.0, 3.0)
    assert second == Verdict(None, "exception", "ArithmeticError('no judge')")
    assert killable(fragile, workers=2, limit=5.0).name == "fragile"
