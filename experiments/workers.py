"""Runs in several processes of one thread each, so that equal machines give equal numbers."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Task = TypeVar("Task")


def run_all(function: Callable[[Task], object], tasks: Sequence[Task], workers: int) -> None:
    """Call a function with each task, in worker processes.

    Args:
        function: Function of a module, since a process imports it.
        tasks: Arguments of the calls.
        workers: Number of processes.

    Raises:
        SystemExit: the keyboard interrupted it.
    """
    context = multiprocessing.get_context("spawn")
    try:
        # A worker is replaced now and then, so that memory does not grow.
        with context.Pool(workers, _one_thread, maxtasksperchild=10) as pool:
            for _ in pool.imap_unordered(function, tasks, chunksize=1):
                pass
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on with the runs that are missing") from None


def _one_thread() -> None:
    torch.set_num_threads(1)
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
