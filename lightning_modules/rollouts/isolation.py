"""Isolation of the training process from side effects of an in-process engine."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.distributed import GroupMember, ProcessGroup


@contextmanager
def training_state_kept(device_type: str) -> Iterator[None]:
    """Run an engine with PyTorch's default settings within the context, and restore those of the trainer after it.

    Random states, the number of threads, the default dtype and the precision of matrix multiplication are restored.
    Autocast and inference mode of the trainer are disabled for the engine: it has its own precision, and a cache that
    is created in inference mode could not be written to outside of it.
    """
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    multiplication, default = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            isolate_rng(),
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device_type, enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM replaces it by a function that does nothing
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(multiplication)
        torch.set_default_dtype(default)


@contextmanager
def default_process_group(group: ProcessGroup | None) -> Iterator[None]:
    """Replace the default process group within the context, with None for no group."""
    previous = GroupMember.WORLD
    GroupMember.WORLD = group
    try:
        yield
    finally:
        GroupMember.WORLD = previous


@contextmanager
def environment_variables(variables: Mapping[str, str], undone: Sequence[str] = ()) -> Iterator[None]:
    """Set environment variables within the context; changes of those in `undone` are reverted, too."""
    before = {name: os.environ.get(name) for name in (*variables, *undone)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_port() -> str:
    """Return a free port of this machine."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])
