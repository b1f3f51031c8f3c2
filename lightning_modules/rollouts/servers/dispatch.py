"""Dispatch of the prompts of a rollout to servers."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lightning_modules.rollouts.servers.client import ServerClient, ServerFailure

Answer = TypeVar("Answer")


class Dispatch(Generic[Answer]):
    """Scheduler that dispatches numbered tasks to servers; the tasks of a server that fails go to the others.

    A task is either in the queue, with one thread, or answered, so none is lost and none is answered twice.

    Args:
        ask: returns the answer of a server to a task, or raises `ServerFailure`.
        tasks: number of tasks.
        servers: active servers.
        tasks_per_server: maximum number of concurrent tasks per server.
    """

    def __init__(
        self,
        ask: Callable[[ServerClient, int], Answer],
        tasks: int,
        servers: Sequence[ServerClient],
        tasks_per_server: int,
    ) -> None:
        self._ask, self._servers = ask, servers
        needed = math.ceil(tasks / max(len(servers), 1))
        self._threads_per_server = min(needed, tasks_per_server)
        self._waiting = deque(range(tasks))
        self._answers: dict[int, Answer] = {}
        self._tasks = tasks
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.lost: dict[ServerClient, ServerFailure] = {}

    def run(self) -> list[Answer]:
        """Return the answers in task order; some are missing if all servers failed.

        Raises:
            Exception: any exception of `ask` other than `ServerFailure`.
        """
        for _ in range(self._threads_per_server):
            for server in self._servers:
                # Daemon threads, so that one that waits for a hanging server does not keep the process alive.
                threading.Thread(target=self._work, args=(server,), daemon=True).start()
        with self._changed:
            try:
                self._changed.wait_for(self._over)
            finally:
                self._closed = True
                self._changed.notify_all()
        if self._error is not None:
            raise self._error
        return [self._answers[task] for task in sorted(self._answers)]

    def _over(self) -> bool:
        finished = self._error is not None or len(self._answers) == self._tasks
        return finished or len(self.lost) == len(self._servers)

    def _work(self, server: ServerClient) -> None:
        while (task := self._next(server)) is not None:
            try:
                answer = self._ask(server, task)
            except BaseException as error:
                self._give_up(server, task, error)
                return
            with self._changed:
                self._answers[task] = answer
                self._changed.notify_all()

    def _next(self, server: ServerClient) -> int | None:
        """Wait for a task for the server; return None when there will be no more."""
        with self._changed:
            # An empty queue is refilled when another server fails.
            self._changed.wait_for(lambda: self._closed or self._over() or server in self.lost or self._waiting)
            if self._closed or self._over() or server in self.lost:
                return None
            return self._waiting.popleft()

    def _give_up(self, server: ServerClient, task: int, error: BaseException) -> None:
        with self._changed:
            if isinstance(error, ServerFailure):
                self._waiting.append(task)
                self.lost.setdefault(server, error)
            else:
                self._error = error
            self._changed.notify_all()
