"""Protocol between `aggregate-po serve` and its client: routes, environment variables, versions and weight files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATE_ROUTE = "/aggregate_po/state"
WEIGHTS_ROUTE = "/aggregate_po/weights"
VERSION_HEADER = "x-policy-version"
TOKEN_VARIABLE = "AGGREGATE_PO_TOKEN"
FOLDER_VARIABLE = "AGGREGATE_PO_WEIGHTS_FOLDER"

VERSION = re.compile(r"\d{6,}-[0-9a-f]{8}")  # number and digest of the weights


class WeightsDigest:
    """Checksum of named tensors, which depends on their order; it protects against mistakes, not against attackers."""

    def __init__(self) -> None:
        self._value = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor with its name, dtype and shape to the checksum."""
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        self._value = zlib.crc32(header.encode(), self._value)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._value = zlib.crc32(data.numpy().data, self._value)

    def tee(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors unchanged, and add each to the checksum."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def __str__(self) -> str:
        return f"{self._value:08x}"


def tied_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return each name of a tensor that has an earlier name, with that earlier name."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, tensor in weights.items():
        if tensor.numel():  # empty tensors are all at the same address
            view = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            if first.setdefault(view, name) != name:
                tied[name] = first[view]
    return tied


def under_all_names(weights: Iterable[tuple[str, Tensor]], tied: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under their names, and tied ones under their later names, too."""
    for name, tensor in weights:
        yield name, tensor
        yield from ((later, tensor) for later, earlier in tied.items() if earlier == name)


def weights_file(folder: Path, version: str) -> Path:
    """Return the file that holds the weights of a version.

    Raises:
        ValueError: `version` is not a valid version.
    """
    if not VERSION.fullmatch(version):
        raise ValueError(f"`version` is {version!r}; pass one that `SharedFolder.publish` returned.")
    return folder / f"policy-{version}.safetensors"


def model_sizes(config: Any) -> dict[str, Any]:
    """Return the sizes that must agree for the weights of one model to be loaded into another."""
    text = config.get_text_config()
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {name: getattr(text, name, None) for name in names}
