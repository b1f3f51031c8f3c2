"""State of the training process that an engine within it must leave as it was."""

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
    """Run an engine under PyTorch's defaults, and leave the process as it was.

    Random states, the number of threads, the default and the matrix multiplication's precision are restored. The
    trainer's autocast and inference mode do not reach the engine: it has its own precision, and a cache made in
    inference mode could not be written outside.
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
        torch.set_num_threads = set_num_threads  # vLLM puts a function in its place that does nothing
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(multiplication)
        torch.set_default_dtype(default)


@contextmanager
def default_process_group(group: ProcessGroup | None) -> Iterator[None]:
    """Another default process group, or none, for a while."""
    previous = GroupMember.WORLD
    GroupMember.WORLD = group
    try:
        yield
    finally:
        GroupMember.WORLD = previous


@contextmanager
def environment_variables(variables: Mapping[str, str], undone: Sequence[str] = ()) -> Iterator[None]:
    """Environment variables that hold for a while; `undone` names others whose changes are taken back too."""
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
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])
