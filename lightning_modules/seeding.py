"""Derived seeds, and the global random state of this process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """Return a seed that differs whenever a part differs, and is the same on every machine."""
    seed = 0
    for part in parts:
        # One round of splitmix64 for each part.
        seed = (seed + part + 0x9E3779B97F4A7C15) % 2**64
        seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % 2**64
        seed ^= seed >> 31
    return seed % 2**63


def uniform_number(*parts: int) -> float:
    """Return a number from 0 to below 1 that is uniform over parts, and the same on every machine."""
    return (derived_seed(*parts) >> 10) / 2**53


def random_state() -> dict[str, Any]:
    """Return the states of the random generators of torch, Python and NumPy, as tensors, numbers and strings only."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002, the global generator, which other libraries use
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": torch.tensor(numpy["state"]["key"].tolist())}},
    }


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Let what is done in this context leave the random state as it was before."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
