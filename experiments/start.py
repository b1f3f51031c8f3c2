"""The model that runs start from: a digest of its weights, which each processor rounds in its own way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of weights by their names, in 12 hexadecimal digits."""
    content = b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(content).hexdigest()[:12]
