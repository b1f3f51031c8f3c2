"""Compact binary form of a report: JSON for texts and arrays of rounded numbers, compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

_DIGITS = 12  # bits of the significand that are kept: a relative error of at most 2^-13, so four digits
_COUNTS = 2.0**13, 2.0**24  # sizes at which these bits cannot tell integers apart, and all bits of float32 can


class Arrays:
    """Arrays of numbers that are written one after the other, and the references to them.

    The bytes of an array are sorted by significance, first all lowest bytes, which compresses better.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def floats(self, values: Sequence[float | None]) -> dict[str, Any]:
        """Store numbers with four significant digits, integers below 2^24 with all; None becomes NaN."""
        array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        with np.errstate(over="ignore"):
            return self._store(rounded(array), "f4")

    def integers(self, values: Sequence[int]) -> dict[str, Any]:
        """Store integers of 32 bits."""
        return self._store(np.array(values, dtype="<i4"), "i4")

    def flags(self, values: Sequence[bool]) -> dict[str, Any]:
        """Store flags as bytes."""
        return self._store(np.array(values, dtype=np.uint8), "u1")

    def _store(self, array: np.ndarray, kind: str) -> dict[str, Any]:
        part = array.view(np.uint8).reshape(len(array), array.itemsize).T.tobytes()
        reference = {"at": self._size, "n": len(array), "as": kind}
        self._parts.append(part)
        self._size += len(part)
        return reference

    def bytes(self) -> bytes:
        """Return all arrays."""
        return b"".join(self._parts)


def rounded(array: np.ndarray) -> np.ndarray:
    """Return numbers as float32 whose last bits are 0; infinities and NaN remain.

    From 8,192 to 2^24 all bits remain: integers such as a number of tokens are exact, and no other number below a
    million becomes one.
    """
    bits = array.astype("<f4").view("<u4")
    unused = 23 - _DIGITS
    nearest = (bits + np.uint32(1 << (unused - 1))) & np.uint32(-(1 << unused) & 0xFFFFFFFF)
    size = np.abs(array)
    is_rounded = np.isfinite(array) & ((size < _COUNTS[0]) | (size > _COUNTS[1]))
    return np.where(is_rounded, nearest, bits).astype("<u4").view("<f4")


def packed(header: dict[str, Any], arrays: Arrays) -> bytes:
    """Return the length of the header, the header as JSON and the arrays, compressed by gzip.

    Numbers of the header must be finite, because JSON has no others.
    """
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = without_surrogates(text).encode()
    return gzip.compress(len(data).to_bytes(4, "little") + data + arrays.bytes(), mtime=0)


def without_surrogates(text: str) -> str:
    """Return a text that can be written; a lone surrogate of a damaged one becomes a question mark."""
    return text.encode(errors="replace").decode()
