"""Worker process of a pool, as the training process sees it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_modules.rewards.pool import worker
from lightning_modules.rewards.verdict import Verdict

_BACKSTOP = 10  # wall-clock limit, as a multiple of the limit, where waiting for a processor cannot be measured


class WorkerProcess:
    """Process that scores one completion at a time.

    Args:
        settings: pickled reward, module search path and limits, as the worker reads them.
        limit: time limit of a verdict, in seconds.
    """

    def __init__(self, settings: Mapping[str, Any], limit: float) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, str(Path(worker.__file__)), str(writing)]
        # A session of its own: what the reward starts is killed with it, and Ctrl-C reaches the training process alone.
        self._process = subprocess.Popen(
            command,
            bufsize=0,  # a buffer has a lock, which a fork in the middle of a write would leave locked
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
            start_new_session=True,
            env=_environment(),
        )
        os.close(writing)
        os.set_blocking(reading, False)
        self.answers = reading  # file descriptor that is readable when there is an answer, or when the worker has ended
        self.task: int | None = None  # number of the completion that was sent last and has no verdict
        self.has_begun = False  # whether the verdict on it has begun
        self.is_ready = False
        self.started = time.monotonic()
        self._limit = limit
        self._received = b""
        self._begun = 0.0
        self._waited_before = 0.0
        self._send(pickle.dumps(dict(settings)))

    def score(self, number: int, completion: str, example: Mapping[str, Any]) -> None:
        """Send a completion to the worker.

        Raises:
            BrokenPipeError: the worker has ended.
        """
        self._send(pickle.dumps((completion, dict(example))))
        self.task = number
        self._start_clock()

    @property
    def is_free(self) -> bool:
        """Whether the worker has loaded the reward and has nothing to score."""
        return self.is_ready and self.task is None

    def read(self) -> list[tuple[int, Verdict]]:
        """Return the verdicts that have arrived, each with the number of its completion.

        Raises:
            EOFError: the worker has ended.
        """
        with suppress(BlockingIOError):
            chunk = os.read(self.answers, 1 << 16)
            if not chunk:
                raise EOFError
            self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        return [verdict for line in lines for verdict in self._understood(json.loads(line))]

    def _understood(self, message: Mapping[str, Any]) -> list[tuple[int, Verdict]]:
        self.is_ready = True
        if "begun" in message:
            self.has_begun = True
            self._start_clock()
        elif self.task is not None and "ready" not in message:
            number, self.task, self.has_begun = self.task, None, False
            return [(number, Verdict(message.get("value"), message.get("cause"), message.get("detail", "")))]
        return []

    @property
    def remaining(self) -> float:
        """Remaining seconds of the present verdict; time in which the worker waited for a processor is not counted."""
        elapsed = time.monotonic() - self._begun
        waited = self._waited()
        if waited is None:
            return self._limit * _BACKSTOP - elapsed
        return self._limit - (elapsed - (waited - self._waited_before))

    def kill(self) -> Verdict:
        """Kill the worker and what it has started in its session; return the verdict of a process that has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.discard()
        if status == -signal.SIGPROF:
            return Verdict(None, "time", f"{self._limit} s of processor time")
        return Verdict(None, "exit", f"exit status {status}")

    def discard(self) -> None:
        """Close the pipes; the worker ends itself when no process holds their other ends."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(OSError):
            os.close(self.answers)

    def _start_clock(self) -> None:
        self._begun, self._waited_before = time.monotonic(), self._waited() or 0.0

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        remaining = memoryview(worker.HEADER.pack(len(message)) + message)
        while remaining:
            remaining = remaining[self._process.stdin.write(remaining) :]

    def _waited(self) -> float | None:
        """Return the seconds in which the worker could run but had no processor, or None where the system hides it."""
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return None


def _environment() -> dict[str, str]:
    """Return the environment of a worker: one thread, since the pool has one worker per processor to use."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
