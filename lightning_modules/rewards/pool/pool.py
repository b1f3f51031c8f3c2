"""Pool of worker processes that score completions."""

from __future__ import annotations

import os
import pickle
import selectors
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

from typing_extensions import override

from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.concurrent import is_async
from lightning_modules.rewards.names import reward_name
from lightning_modules.rewards.pool.process import WorkerProcess
from lightning_modules.rewards.verdict import Verdict

_POLL = 0.05  # seconds between two looks at the time limits
_START_LIMIT = 300.0  # seconds to load the reward; a module that imports much from a busy disk takes a minute


class RewardPool(BatchReward):
    """Scores completions in worker processes, each verdict within limits of time and memory.

    A verdict that hangs, ends its process, raises an exception or uses too much memory fails alone: its worker is
    replaced and the others go on. The time of a verdict starts when its worker starts on it, and does not run while
    the worker waits for a processor (on Linux; elsewhere the processor time is limited, and the time on the clock to
    ten times the limit). Call the pool from as many threads as you like; their calls take turns.

    Args:
        reward: Reward function, importable by its module and name.
        workers: Number of worker processes.
        limit: Time limit of a verdict in seconds.
        memory: Memory that a worker may use beyond what it has after loading the reward, in bytes.

    Raises:
        TypeError: the reward cannot be sent to another process.
        ValueError: a number is out of its range.
    """

    def __init__(self, reward: Reward, workers: int = 2, limit: float = 5.0, memory: int = 1 << 30) -> None:
        if not callable(reward):
            raise TypeError(f"`reward` is {reward!r}; pass a function of a completion and its example.")
        if isinstance(reward, BatchReward) or is_async(reward):
            raise TypeError(
                f"`reward` is {reward!r}, which scores many completions at a time; pass it without a pool, or a "
                "function of one completion and its example."
            )
        if workers < 1:
            raise ValueError(f"`workers` is {workers}; pass 1 or more.")
        if not 0 < limit < float("inf"):
            raise ValueError(f"`limit` is {limit}; pass a positive number of seconds.")
        if memory < 1 << 20:
            raise ValueError(f"`memory` is {memory} bytes; pass at least a MiB, 1 << 20.")
        self.reward = reward
        self.workers = workers
        self.limit = limit
        self.memory = memory
        self._settings = {"reward": _pickled(reward), "limit": limit, "memory": memory}
        self._processes: list[WorkerProcess] = []
        self._lock = threading.Lock()
        _POOLS.add(self)

    @override
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
        """Return the verdict on each completion, in order, given one example per completion.

        Raises:
            RuntimeError: a worker ends before it has loaded the reward.
            ValueError: there are more examples than completions, or fewer.
        """
        tasks = list(zip(completions, examples, strict=True))
        with self._lock:
            return self._scored(tasks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    @override
    def name(self) -> str:
        return reward_name(self.reward)

    @override
    def close(self) -> None:
        """End all workers; a later call starts new ones."""
        for process in self._processes:
            process.kill()
        self._processes = []

    def _leave_to_parent(self) -> None:
        """Forget the workers and the lock of the process that this one was forked from; its threads are not here."""
        for process in self._processes:
            process.discard()
        self._processes, self._lock = [], threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: a copy has workers of its own."""
        names = "reward", "workers", "limit", "memory"
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _scored(self, tasks: Sequence[tuple[str, Example]]) -> list[Verdict]:
        call = _Call(tasks)
        try:
            while call.open:
                missing = min(self.workers, call.open) - len(self._processes)
                settings = {**self._settings, "path": sys.path, "parent": os.getpid()}
                self._processes += [WorkerProcess(settings, self.limit) for _ in range(missing)]
                self._assign(call)
                self._collect(call)
        except BaseException:  # an interrupt, say: no verdict of this call may reach the next one
            self.close()
            raise
        return call.complete

    def _assign(self, call: _Call) -> None:
        """Send a completion to every free worker."""
        for process in [process for process in self._processes if process.is_free]:
            if not call.waiting:
                return
            number = call.waiting.popleft()
            try:
                process.score(number, *call.tasks[number])
            except BrokenPipeError:  # it has ended between two verdicts
                self._remove(process)
                call.waiting.appendleft(number)

    def _collect(self, call: _Call) -> None:
        """Wait a moment for answers, and end the verdicts that have reached their time limit."""
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.answers, selectors.EVENT_READ, process)
            ready = [key.data for key, _ in selector.select(_POLL)]
        for process in ready:
            self._read(process, call)
        for process in list(self._processes):
            if process.task is not None and process.remaining <= 0:
                call.end(process.task, Verdict(None, "time", f"{self.limit} s"))
                self._remove(process)
            elif not process.is_ready and time.monotonic() - process.started > _START_LIMIT:
                raise RuntimeError(
                    f"a worker of the pool has not loaded the reward {self.reward!r} within {_START_LIMIT:g} s; its "
                    "module must not wait for anything when it is imported."
                )

    def _read(self, process: WorkerProcess, call: _Call) -> None:
        try:
            verdicts = process.read()
        except EOFError:
            self._ended(process, call)
            return
        for number, verdict in verdicts:
            call.end(number, verdict)
            if verdict.cause in ("memory", "exit"):  # what such a process says next is not to be trusted
                self._remove(process)

    def _ended(self, process: WorkerProcess, call: _Call) -> None:
        """Take up what a worker leaves that has ended."""
        verdict = self._remove(process)
        if process.task is not None:
            call.lose(process.task, verdict, process.has_begun)
        elif not process.is_ready:
            raise RuntimeError(
                f"a worker of the pool ended ({verdict.detail}) before it had loaded the reward {self.reward!r}; "
                "its traceback is above. The reward's module must be importable in another process."
            )

    def _remove(self, process: WorkerProcess) -> Verdict:
        self._processes.remove(process)
        return process.kill()


class _Call:
    """Completions of one call of the pool, and the verdicts on them so far."""

    def __init__(self, tasks: Sequence[tuple[str, Example]]) -> None:
        self.tasks = tasks
        self.waiting = deque(range(len(tasks)))
        self._verdicts: dict[int, Verdict] = {}
        self._lost: set[int] = set()

    @property
    def open(self) -> int:
        """Number of completions without a verdict."""
        return len(self.tasks) - len(self._verdicts)

    @property
    def complete(self) -> list[Verdict]:
        """Verdicts of all completions, in order."""
        return [self._verdicts[number] for number in range(len(self.tasks))]

    def end(self, number: int, verdict: Verdict) -> None:
        """Record a verdict."""
        self._verdicts[number] = verdict

    def lose(self, number: int, verdict: Verdict, has_begun: bool) -> None:
        """Record the verdict of a worker that has ended; a completion that it had not begun is sent once more."""
        if has_begun or number in self._lost:
            self.end(number, verdict)
        else:
            self._lost.add(number)
            self.waiting.appendleft(number)


def _pickled(reward: Reward) -> bytes:
    try:
        return pickle.dumps(reward)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`reward` is {reward!r}, which cannot be sent to another process ({error}); define it at the top level "
            "of a module."
        ) from error


_POOLS: weakref.WeakSet[RewardPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in _POOLS:
        pool._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
