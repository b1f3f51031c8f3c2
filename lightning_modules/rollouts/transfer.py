"""The group of processes in which the trainer sends tensors to the workers of one server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

TransferBackend = Literal["nccl", "gloo"]
Description = tuple[str, str, Sequence[int]]  # name, type and shape of a tensor

_TRAINER = 0


def open_store(address: str, timeout: float) -> dist.TCPStore:
    """Where the processes find each other; it listens on this address alone.

    Raises:
        OSError: the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),  # without it the store listens on every interface
    )


def find_store(address: str, port: int, timeout: float) -> dist.TCPStore:
    """The store that the trainer opened."""
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


class TransferGroup:
    """Joins the group; returns when all its processes have.

    It is none of torch's numbered groups, so that the trainer's ranks and vLLM's own stay as they are.

    Args:
        store: where the processes find each other.
        number: of this process; the trainer is 0.
        size: number of processes.
        backend: "nccl" between GPUs, "gloo" between CPUs.
        address: of this machine in the group, for gloo; when None, torch chooses.
        timeout: seconds that each tensor may take.

    Raises:
        RuntimeError: not all processes came in time.
    """

    def __init__(
        self, store: dist.Store, number: int, size: int, backend: str, address: str | None, timeout: float
    ) -> None:
        if backend not in get_args(TransferBackend):
            raise ValueError(f"`backend` is {backend!r}; pass one of {', '.join(get_args(TransferBackend))}.")
        limit = timedelta(seconds=timeout)
        self._group: Any
        if backend == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group = dist.ProcessGroupNCCL(store, number, size, options)
        else:
            self.device = torch.device("cpu")
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # no stub has it
            options._timeout = limit
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=address or "")]
            self._group = dist.ProcessGroupGloo(store, number, size, options)

    def send(self, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Send tensors to all others, in the order of the names.

        Raises:
            RuntimeError: a process is gone, or did not take a tensor in time.
        """
        for name in names:
            self._group.broadcast(weights[name].to(self.device).contiguous(), _TRAINER).wait()

    def receive(self, descriptions: Iterable[Description]) -> Iterator[tuple[str, Tensor]]:
        """Named tensors, one after the other, as they arrive."""
        for name, dtype, shape in descriptions:
            tensor = torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self.device)
            self._group.broadcast(tensor, _TRAINER).wait()
            yield name, tensor

    def abort(self) -> None:
        """Leave the group, whatever is still under way."""
        self._group.abort()


def described(weights: Mapping[str, Tensor]) -> list[Description]:
    """What a process must know of tensors before it can receive them; in the order in which they are sent."""
    return [
        (name, str(weights[name].dtype).removeprefix("torch."), list(weights[name].shape)) for name in sorted(weights)
    ]


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
