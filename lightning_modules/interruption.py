"""Signals that ask the process to end: SIGTERM, Ctrl-C, and the announcement of a job's time limit.

At first there is nothing to save and nothing to clean up, and the process ends at once. When the trainer takes over, a
signal is an `Interruption`, which the trainer cleans up after. During training `RunCheckpoint` notes the signal,
finishes the optimizer step and saves; afterwards a signal is an `Interruption` again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

# The usual choices for the announcement of a time limit are among them.
_LISTENED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_listening: list[int] = []
_raised: list[signal.Signals] = []


class Interruption(KeyboardInterrupt):
    """A signal that asked the process to end, raised in the main thread.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


@contextmanager
def listening() -> Iterator[None]:
    """Within the context, end this process at once, with a sentence, when a signal asks for it.

    Afterwards the handlers are those from before, also if `interrupt_from_here` has replaced them in between.
    """
    _raised.clear()  # of an earlier command in this process
    before = handle(_end_at_once, _LISTENED)
    _listening[:] = before
    try:
        yield
    finally:
        restore(before)


def interrupt_from_here() -> None:
    """Let the signals that `listening` listens to raise an `Interruption`, so that the process can clean up."""
    handle(interrupt, _listening)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise an `Interruption`, unless rank 0 has started this process and will end it."""
    if not _is_launched_by_rank_zero():
        _raised.append(signal.Signals(number))
        raise Interruption(number)


def interruption() -> signal.Signals | None:
    """Return the signal that has interrupted this process, if there was one."""
    return _raised[-1] if _raised else None


def _end_at_once(number: int, frame: FrameType | None) -> None:
    if not _is_launched_by_rank_zero():
        name = signal.Signals(number).name
        # Neither `print` nor an exception is safe in the middle of an import.
        os.write(2, f"\n{name}: ended before there was anything to save; repeat the command.\n".encode())
        os._exit(128 + number)


def _is_launched_by_rank_zero() -> bool:
    """Whether Lightning's launcher started this process; rank 0 kills such processes when it is interrupted."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ


def handle(handler: Handler, numbers: Iterable[int]) -> dict[int, Any]:
    """Install a handler for signals, except for those that are ignored, as by `nohup`.

    A forked child behaves as if there were no handler. Outside the main thread nothing is installed.

    Returns:
        The previous handlers by signal.
    """
    process = os.getpid()

    def in_this_process(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        return {}
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, in_this_process) for number in handled}


def restore(handlers: Mapping[int, Any]) -> None:
    """Install the handlers that `handle` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
