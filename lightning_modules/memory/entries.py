"""Entries of a memory estimate, the phases of a training run, and the memory of a rollout engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["rollout", "scoring", "training", "update"]
PHASES: tuple[Phase, ...] = get_args(Phase)
GIB = 2**30


@dataclass(frozen=True)
class Entry:
    """One item of a memory estimate, on each device.

    Args:
        name: Name in the printed table.
        size: Size in bytes.
        phases: Phases in which the memory is allocated.
        remedy: Advice that makes the entry smaller.
    """

    name: str
    size: int
    phases: tuple[Phase, ...] = PHASES
    remedy: str = ""


@dataclass(frozen=True)
class EngineMemory:
    """Memory of a rollout engine, on each device that trains.

    Args:
        entries: Entries of the engine; empty if it needs no memory on the device, or if it is not counted.
        sentence: Sentence about the engine, printed below the table.
        gathers_policy: Whether the engine gathers the full weights of a sharded policy on every device.
    """

    entries: tuple[Entry, ...] = ()
    sentence: str = ""
    gathers_policy: bool = False


@dataclass(frozen=True)
class CachePlan:
    """Space for the KV cache in the memory that an engine allocates on a device.

    Args:
        share: Memory of the engine in bytes.
        weights: Weights of the engine in bytes.
        per_token: Keys and values of one token in all layers, in bytes.
        length: Number of tokens of the longest sequence.
    """

    share: int
    weights: int
    per_token: int
    length: int

    @property
    def left(self) -> int:
        """Bytes for the KV cache; negative if the weights alone do not fit."""
        return self.share - self.weights

    @property
    def sequences(self) -> int:
        """Number of sequences of the longest length that fit at the same time."""
        return max(self.left, 0) // (self.per_token * self.length)

    def told(self, origin: str, max_sequences: int) -> str:
        """Return a sentence with the memory, its origin, and the number of sequences that fit."""
        return (
            f"{self.share / GIB:.2f} GiB ({origin}), {self.weights / GIB:.2f} of them for weights and at most "
            f"{self.left / GIB:.2f} for keys and values: {self.sequences:,} sequences of {self.length:,} tokens at "
            f"once, of {max_sequences:,} requested."
        )
