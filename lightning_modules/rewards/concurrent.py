"""Asynchronous rewards, awaited concurrently."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from typing_extensions import override

from lightning_modules.prompts import Example
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.calls import located
from lightning_modules.rewards.names import reward_name
from lightning_modules.rewards.verdict import Verdict
from lightning_modules.validation import require_at_least

AsyncReward = Callable[[str, Example], Awaitable[float]]
"""Scores a completion, given the example that it answers, as a coroutine; see `ConcurrentReward`."""


class ConcurrentReward(BatchReward):
    """Awaits an asynchronous reward function for many completions at a time.

    The data module wraps asynchronous functions in it; wrap one yourself to choose the options. Each call runs an event
    loop of its own, so the function must not keep clients that belong to a loop. An exception stops the run.

    Args:
        reward: Coroutine function of a completion and its example, or an object whose `__call__` is one.
        concurrency: Maximum number of completions that are scored at the same time.
        limit: Time limit of a verdict in seconds, after which it fails with the cause "time"; none when None.

    Raises:
        TypeError: `reward` is not asynchronous.
        ValueError: a number is out of its range.
    """

    def __init__(self, reward: AsyncReward, concurrency: int = 64, limit: float | None = None) -> None:
        require_at_least(1, concurrency=concurrency)
        if limit is not None and not 0 < limit < float("inf"):
            raise ValueError(f"`limit` is {limit}; pass a positive number of seconds, or None.")
        if not is_async(reward):
            raise TypeError(f"`reward` is {reward!r}; pass a function that is defined with `async def`.")
        self.reward = reward
        self.concurrency = concurrency
        self.limit = limit

    @override
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> Sequence[float | Verdict]:
        return run_coroutine(functools.partial(self._all, list(zip(completions, examples, strict=True))))

    @property
    @override
    def name(self) -> str:
        return reward_name(self.reward)

    async def _all(self, tasks: Sequence[tuple[str, Example]]) -> list[float | Verdict]:
        places = asyncio.Semaphore(self.concurrency)
        return await asyncio.gather(*(self._one(places, *task) for task in tasks))

    async def _one(self, places: asyncio.Semaphore, completion: str, example: Example) -> float | Verdict:
        async with places:
            with located(self.name, completion, example):
                try:
                    async with asyncio.timeout(self.limit) as clock:
                        return await self.reward(completion, example)
                except TimeoutError:
                    if clock.expired():
                        return Verdict(None, "time", f"{self.limit} s")
                    raise


def is_async(reward: object) -> bool:
    """Whether a reward is a coroutine function, or an object whose `__call__` is one."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    called = getattr(reward, "__call__", None)  # noqa: B004, which kind of callable is the question
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(called)


def run_coroutine(function: Callable[[], Any]) -> Any:
    """Return what a coroutine function without arguments returns, in this thread if it runs no event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(function())
    with ThreadPoolExecutor(1) as thread:  # as in a notebook
        return thread.submit(lambda: asyncio.run(function())).result()
