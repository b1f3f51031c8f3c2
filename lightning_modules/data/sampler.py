"""The next rollout, drawn while the present one is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lightning_modules.rollouts import Completions


@dataclass(frozen=True)
class Drawn:
    """Completions, and the policy that drew them.

    Args:
        completions: as the engine gave them; None where another rank draws the same ones.
        global_step: optimiser steps that the policy had made.
        figures: what the engine said of itself, to be logged.
    """

    completions: Completions | None
    global_step: int
    figures: Mapping[str, float]


class RolloutAhead:
    """At most one rollout that a thread draws from an engine in another process.

    The engine must not be used in the meantime, so whoever needs it calls `settle` first. What is under way is not
    part of a checkpoint: a resumed run draws it anew, from the same prompts.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._pending: tuple[int, Future[Drawn]] | None = None

    def begin(self, number: int, draw: Callable[[], Drawn]) -> None:
        """Draw the rollout with this number in the background."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._pending = (number, self._executor.submit(draw))

    def take(self, number: int) -> Drawn | None:
        """The rollout with this number, once it is finished; None if it was not begun. Raises what drawing raised."""
        if self._pending is None or self._pending[0] != number:
            return None
        _, future = self._pending
        self._pending = None
        return future.result()

    def settle(self) -> None:
        """Wait until the engine is free."""
        if self._pending is not None:
            self._pending[1].exception()

    def close(self) -> None:
        """Forget what is under way, and end the thread."""
        self._pending = None
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
