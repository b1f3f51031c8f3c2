"""Entries of a memory estimate, the phases of a training that they are there in, and a rollout engine's part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["rollout", "scoring", "training", "update"]
PHASES: tuple[Phase, ...] = get_args(Phase)
GIB = 2**30


@dataclass(frozen=True)
class Entry:
    """Something that takes memory on each device.

    Args:
        name: shown in the table.
        size: bytes.
        phases: in which it is there.
        remedy: makes it smaller.
    """

    name: str
    size: int
    phases: tuple[Phase, ...] = PHASES
    remedy: str = ""


@dataclass(frozen=True)
class EngineMemory:
    """Memory of a rollout engine on each device that trains.

    Args:
        entries: memory of the engine; none if it takes none on the device, or is not counted.
        sentence: about the engine, printed below the table.
        gathers_policy: whether all weights of a sharded policy are on every device while the engine samples.
    """

    entries: tuple[Entry, ...] = ()
    sentence: str = ""
    gathers_policy: bool = False


@dataclass(frozen=True)
class CachePlan:
    """Room for keys and values in the share of a device that an engine allocates.

    Args:
        share: bytes of the engine.
        weights: bytes of its weights.
        per_token: bytes of one token's keys and values in all layers.
        length: tokens of the longest sequence.
    """

    share: int
    weights: int
    per_token: int
    length: int

    @property
    def left(self) -> int:
        """Bytes for the cache; negative where the weights alone do not fit."""
        return self.share - self.weights

    @property
    def sequences(self) -> int:
        """Sequences of the longest length that fit at once."""
        return max(self.left, 0) // (self.per_token * self.length)

    def told(self, origin: str, max_sequences: int) -> str:
        """Return a sentence about the share, where it is from, and how many of the sequences asked for fit."""
        return (
            f"{self.share / GIB:.2f} GiB ({origin}), of which weights {self.weights / GIB:.2f}; at most "
            f"{self.left / GIB:.2f} left for keys and values: {self.sequences:,} sequences of {self.length:,} tokens "
            f"at once, of {max_sequences:,} asked for."
        )
