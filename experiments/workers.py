"""Runs in several processes of one thread each, so that equal machines give equal numbers."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.pool import Pool
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(function: Callable[[Task], object], tasks: Sequence[Task], workers: int) -> None:
    """Call a function with each task, in worker processes.

    Args:
        function: Function of a module, since a process imports it.
        tasks: Arguments of the calls.
        workers: Number of processes.

    Raises:
        SystemExit: the keyboard interrupted it.
    """
    try:
        with _pool(workers) as pool:
            for _ in pool.imap_unordered(function, tasks, chunksize=1):
                pass
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on with the runs that are missing") from None


def results_of(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """Return the results of a function for each task, in the order of the tasks.

    Args:
        function: Function of a module, since a process imports it.
        tasks: Arguments of the calls.
        workers: Number of processes; with one, the calls are made in this process.
    """
    if workers == 1:
        return [function(task) for task in tasks]
    with _pool(workers) as pool:
        return pool.map(function, tasks, chunksize=1)


def _pool(workers: int) -> Pool:
    # A worker is replaced now and then, so that memory does not grow.
    return multiprocessing.get_context("spawn").Pool(workers, _one_thread, maxtasksperchild=10)


def _one_thread() -> None:
    torch.set_num_threads(1)
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
