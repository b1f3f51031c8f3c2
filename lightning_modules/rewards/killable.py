"""Rewards of any kind, in processes that can be killed where that is possible."""

from __future__ import annotations

from typing import cast

from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.concurrent import AsyncReward, ConcurrentReward, is_async
from lightning_modules.rewards.names import reward_name
from lightning_modules.rewards.pool import RewardPool
from lightning_modules.rewards.verdict import Verdict
from lightning_modules.rewards.weighted import AnyReward


def killable(reward: AnyReward, workers: int, limit: float) -> BatchReward:
    """Return a reward that costs one verdict where it fails: a `BatchReward` as it is, a function in a pool.

    Args:
        reward: reward of any kind; a function must be importable by its module and name.
        workers: number of processes of the pool, or of verdicts of an asynchronous function at the same time.
        limit: time limit of a verdict in seconds.
    """
    if isinstance(reward, BatchReward):
        return reward
    if is_async(reward):
        return ConcurrentReward(_caught(cast(AsyncReward, reward)), workers, limit)
    return RewardPool(cast(Reward, reward), workers, limit)


def _caught(reward: AsyncReward) -> AsyncReward:
    """Return a reward whose exceptions are failed verdicts, as those of a reward in a pool are."""

    async def caught(completion: str, example: Example) -> float | Verdict:
        try:
            return await reward(completion, example)
        except Exception as error:
            return Verdict(None, "exception", repr(error)[:500])

    caught.__name__ = reward_name(reward)
    return cast(AsyncReward, caught)
