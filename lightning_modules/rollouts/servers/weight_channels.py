"""Channels that transfer the weights of the policy to servers, without pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from lightning_modules.rollouts.private_folder import made_private, require_private
from lightning_modules.rollouts.protocol import VERSION, WeightsDigest, tied_names, weights_file
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
            Version of the weights: a number, a hyphen, and a digest. It is unchanged if the weights are.
        """

    def deliver(self, server: ServerClient, version: str) -> None:
        """Make a server load the version that was published last; called from one thread per server."""


class _Versions:
    """Counter of weight versions, which recognizes unchanged weights by their digest."""

    def __init__(self) -> None:
        self.current = ""
        self._number = 0

    def count(self, weights: Mapping[str, Tensor]) -> bool:
        """Set `current` to the version of the weights, and return whether they have changed."""
        digest = WeightsDigest()
        for name in sorted(weights):
            digest.add(name, weights[name])
        if self.current.endswith(f"-{digest}"):
            return False
        self._number += 1
        self.current = f"{self._number:06d}-{digest}"
        return True


class SharedFolder(WeightChannel):
    """Weight transfer through safetensors files in a folder that the trainer writes and the servers read.

    Files are written atomically, under names that are never reused for other weights. A tied tensor is written once,
    and the metadata of the file give the first name of each of its other names. The last two files are kept, and those
    of an earlier run are removed at the first transfer. The servers have their own path of the folder (`aggregate-po
    serve --weights_folder`); a request only names a version in it.

    Args:
        path: Path of the folder, created if needed; use memory (`/dev/shm`) on one machine, and a shared file system
            on several. Each run needs its own folder, which its user alone can write: servers refuse any other.

    Raises:
        PermissionError: others can write the folder, or replace it.
    """

    _kept = 2

    def __init__(self, path: str) -> None:
        if Path(path).is_dir():
            require_private(Path(path))
        self.path = path
        self._versions = _Versions()
        self._files: list[Path] = []

    @override
    def publish(self, weights: Mapping[str, Tensor]) -> str:
        """Write the weights if they have changed, and return their version.

        Raises:
            PermissionError: others can write the folder, or replace it.
        """
        tied = tied_names(weights)
        kept = {name: tensor for name, tensor in weights.items() if name not in tied}
        changed = self._versions.count(kept)
        target = weights_file(Path(self.path), self._versions.current)
        if changed or not target.is_file():  # an earlier attempt may have failed
            self._write(kept, tied, target)
        return self._versions.current

    @override
    def deliver(self, server: ServerClient, version: str) -> None:
        """Make a server load the file of the version."""
        server.load_weights(version)

    def _write(self, weights: Mapping[str, Tensor], tied: dict[str, str], target: Path) -> None:
        folder = Path(self.path)
        made_private(folder)
        if not self._files:
            self._remove_leftovers(folder)
        scratch = folder / f".{target.name}.part"
        save_file(_unshared(weights), scratch, metadata=tied)
        scratch.chmod(scratch.stat().st_mode & ~0o022)  # whatever the umask
        scratch.replace(target)
        self._files = [*(file for file in self._files if file != target), target]
        while len(self._files) > self._kept:
            self._files.pop(0).unlink(missing_ok=True)

    def _remove_leftovers(self, folder: Path) -> None:
        for file in folder.iterdir():
            if _LEFTOVER.fullmatch(file.name):
                file.unlink(missing_ok=True)


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with an earlier one, which safetensors refuses."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return unshared
