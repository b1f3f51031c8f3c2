"""The model that runs start from: a digest of its weights, which each processor rounds in its own way."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from experiments.tables import Row


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of weights by their names, in 12 hexadecimal digits."""
    content = b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(content).hexdigest()[:12]


def require_start(parser: argparse.ArgumentParser, output: Path, rows: Sequence[Row], start: str) -> None:
    """End the program if results in a folder are of runs from another model.

    Args:
        parser: parser of the program, which has an `--output`.
        output: folder of the results.
        rows: results in the folder; those of an earlier version have no `start`.
        start: digest of the model of this machine.
    """
    if other := sorted({row.get("start", "") for row in rows} - {start}):
        parser.error(
            f"`--output` is {output}, whose runs began from the model {other[0] or 'of an earlier version'}; this "
            f"machine makes {start}, so that they cannot be compared; pass another folder"
        )
