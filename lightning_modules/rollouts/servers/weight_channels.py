"""Channels that bring the weights of the policy to servers; never as pickles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from lightning_modules.rollouts.protocol import VERSION, WeightsDigest, weights_file
from lightning_modules.rollouts.servers.client import ServerClient

_LEFTOVER = re.compile(rf"policy-{VERSION.pattern}\.safetensors|\.policy-{VERSION.pattern}\.safetensors\.part")


class WeightChannel(Protocol):
    """Brings weights from the trainer to servers; used on rank 0 only.

    Subclass requirements:

    - Implement `publish`. The weights are full tensors on the CPU, by their names in a checkpoint; tied weights may
      share memory. Return their version: a number that rises with each change, a hyphen, and a digest. Weights that
      have not changed keep their version.
    - Implement `deliver`. Have one server load what was published last, and return when it has. It is called from one
      thread for each server, and again for a server that returns after a failure. Raise `ServerFailure` if the server
      may recover, and `ServerRefusal` if it never will.
    - Never send pickles.

    A class with these methods is enough; it need not derive from `WeightChannel`. `SharedFolder` is an example.
    """

    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """Prepare the weights for `deliver`.

        Returns:
            Their version: its number, a hyphen, and what tells them from others.
        """

    def deliver(self, server: ServerClient, version: str) -> None:
        """Have a server load what was published last; called from one thread for each server."""


class _Versions:
    """Numbers weights, and tells new ones from the previous."""

    def __init__(self) -> None:
        self.current = ""
        self._number = 0

    def count(self, weights: Mapping[str, Tensor]) -> bool:
        """Return whether the weights differ from the last ones; `current` is their version."""
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
    the first one replaces what an earlier run has left.
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

    @override
    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """Write the weights, unless they are those before, and return their version."""
        if self._versions.count(weights):
            self._write(weights)
        return self._versions.current

    @override
    def deliver(self, server: ServerClient, version: str) -> None:
        """Have a server load the file of the version that was published last."""
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


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor that shares its memory with one before, since the format has no aliases."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return unshared
