"""What vLLM's worker gains: it loads weights that the trainer wrote into a shared folder."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator

import torch
from safetensors import safe_open
from torch import Tensor


class WeightsDigest:
    """Checksum of named tensors in the order in which they are seen; it guards against mistakes, not attackers."""

    def __init__(self) -> None:
        self._value = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Count one tensor with its name, type and shape."""
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        self._value = zlib.crc32(described.encode(), self._value)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._value = zlib.crc32(data.numpy().data, self._value)

    def watched(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, each counted as it goes by."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def __str__(self) -> str:
        return f"{self._value:08x}"


class WeightsReader:
    """Mixed into vLLM's worker (`--worker-extension-cls`); a method that has the name of one of the worker's fails."""

    reload_weights: Callable[..., None]  # the worker's own

    def load_policy_file(self, path: str) -> str:
        """Load a file of safetensors with the names of a checkpoint.

        Returns:
            Digest of what was loaded.
        """
        digest = WeightsDigest()
        with safe_open(path, framework="pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
            self.reload_weights(weights_iterator=digest.watched(tensors))
        return str(digest)
