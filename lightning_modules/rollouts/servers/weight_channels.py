"""How the weights of the policy reach servers; never as pickles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.rollouts.servers.client import Server, ServerFailure, ServerRefusal
from lightning_modules.rollouts.serving.worker import WeightsDigest
from lightning_modules.rollouts.transfer import TransferBackend, TransferGroup, described, open_store

_Result = TypeVar("_Result")

_VERSION = re.compile(r"\d{6,}-[0-9a-f]{8}")
_LEFTOVER = re.compile(rf"policy-{_VERSION.pattern}\.safetensors|\.policy-{_VERSION.pattern}\.safetensors\.part")


class WeightChannel(Protocol):
    """Takes weights from the trainer to servers; used on rank 0 alone."""

    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """Get the weights ready.

        Returns:
            Their version: its number, a hyphen, and whatever tells them from others.
        """

    def deliver(self, server: Server, version: str) -> None:
        """Have a server load what was published last; called from one thread for each server."""


class _Versions:
    """Numbers weights, and tells new ones from those before."""

    def __init__(self) -> None:
        self.current = ""
        self._number = 0

    def count(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether the weights differ from the last ones; `current` is their version."""
        digest = WeightsDigest()
        for name in sorted(weights):
            digest.add(name, weights[name])
        if self.current.endswith(f"-{digest}"):
            return False
        self._number += 1
        self.current = f"{self._number:06d}-{digest}"
        return True


class SharedFolder(WeightChannel):
    """Files of safetensors in a folder that the trainer writes and the servers read.

    A file appears whole or not at all, under a name that is never used for other weights, and the last two are kept;
    the first one takes the place of what a run before has left.
    The servers find the folder under a path of their own (`aggregate-po serve --weights_folder`); a request names a
    file in it and nothing else.

    Args:
        path: the folder, made where it does not exist; in memory (`/dev/shm`) on one machine, on a file system that
            all machines mount otherwise. One run to a folder.
    """

    _kept = 2

    def __init__(self, path: str) -> None:
        self.path = path
        self._versions = _Versions()
        self._files: list[Path] = []

    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """See `WeightChannel`; weights that have not changed are not written again."""
        if self._versions.count(weights):
            self._write(weights)
        return self._versions.current

    def deliver(self, server: Server, version: str) -> None:
        """See `WeightChannel`."""
        server.load_weights(version)

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        folder = Path(self.path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._files:
            self._remove_leftovers(folder)
        target = weights_file(folder, self._versions.current)
        scratch = folder / f".{target.name}.part"
        save_file(_unshared(weights), scratch)
        scratch.replace(target)
        self._files.append(target)
        while len(self._files) > self._kept:
            self._files.pop(0).unlink(missing_ok=True)

    def _remove_leftovers(self, folder: Path) -> None:
        for file in folder.iterdir():
            if _LEFTOVER.fullmatch(file.name):
                file.unlink(missing_ok=True)


class Broadcast(WeightChannel):
    """Tensors sent over the network to the workers of each server: by NCCL between GPUs, by gloo between CPUs.

    Every server has a group of its own with rank 0, so one that dies takes no other along. The connections are neither
    encrypted nor do they ask for the token: between machines, on a private network only. What travels is numbers.

    Args:
        address: of the machine of rank 0, as the servers reach it; nothing listens on its other addresses.
        backend: "nccl" or "gloo".
        timeout: seconds that a server has to join, and each tensor to arrive.

    NCCL has not been tried with this class.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, address: str = "127.0.0.1", backend: TransferBackend = "nccl", timeout: float = 120.0) -> None:
        if backend not in get_args(TransferBackend):
            raise ValueError(f"`backend` is {backend!r}; pass one of {', '.join(get_args(TransferBackend))}.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` is {timeout}; pass a positive number of seconds.")
        self.address, self.backend, self.timeout = address, backend, timeout
        self._versions = _Versions()
        self._weights: Mapping[str, Tensor] = {}
        self._groups: dict[str, TransferGroup] = {}

    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """See `WeightChannel`.

        Raises:
            ValueError: NCCL is to send, and there is no GPU.
        """
        if self.backend == "nccl" and not torch.cuda.is_available():
            raise ValueError("`backend` is 'nccl', which sends between GPUs, and there is none here; pass 'gloo'.")
        self._versions.count(weights)
        self._weights = weights
        return self._versions.current

    def deliver(self, server: Server, version: str) -> None:
        """See `WeightChannel`."""
        descriptions = described(self._weights)
        names = [name for name, _, _ in descriptions]
        if server.url not in self._groups:
            self._groups[server.url] = self._joined(server)
        group = self._groups[server.url]
        try:
            _together(
                lambda: server.load_weights(version, tensors=descriptions), lambda: group.send(self._weights, names)
            )
        except (ServerFailure, ServerRefusal):
            self._groups.pop(server.url).abort()
            raise

    def _joined(self, server: Server) -> TransferGroup:
        size = 1 + server.state().workers
        store = open_store(self.address, self.timeout)
        place = {"address": self.address, "port": store.port, "size": size}
        return _together(
            lambda: server.join_transfer(**place, backend=self.backend, timeout=self.timeout),
            lambda: TransferGroup(store, 0, size, self.backend, self.address, self.timeout),
        )


def _together(request: Callable[[], None], work: Callable[[], _Result]) -> _Result:
    """Result of the trainer's part, done while a server that was asked does its own; the first failure ends both."""
    outcomes: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def run(part: str, function: Callable[[], Any]) -> None:
        try:
            outcomes.put((part, function()))
        except BaseException as error:
            outcomes.put(("failure", error))

    for part, function in (("request", request), ("work", work)):
        # Daemons: a part may wait for a process that is gone, until its own time is up.
        Thread(target=run, args=(part, function), daemon=True).start()
    results = {}
    for _ in range(2):
        part, result = outcomes.get()
        if isinstance(result, (ServerFailure, ServerRefusal)):
            raise result
        if part == "failure":
            raise ServerFailure(f"weights could not be sent ({type(result).__name__}: {result})") from result
        results[part] = result
    return results["work"]


def weights_file(folder: Path, version: str) -> Path:
    """File that holds the weights of a version.

    Raises:
        ValueError: `version` is none.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError(f"`version` is {version!r}; pass one that `SharedFolder.publish` returned.")
    return folder / f"policy-{version}.safetensors"


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor that shares its memory with one before, since the format has no aliases."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return unshared
