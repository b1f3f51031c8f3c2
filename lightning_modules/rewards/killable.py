"""Rewards of any kind, in processes that can be killed where that is possible."""

from __future__ import annotations

from typing import cast

from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.concurrent import AsyncReward, ConcurrentReward, is_async
from lightning_modules.rewards.pool import RewardPool
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
        return ConcurrentReward(cast(AsyncReward, reward), workers, limit)
    return RewardPool(cast(Reward, reward), workers, limit)
