"""Compact binary form of a report: JSON for texts and arrays of rounded numbers, compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

_DIGITS = 12  # bits of the significand that are kept: a relative error of at most 2^-13, so four digits


class Arrays:
    """Arrays of numbers that are written one after the other, and the references to them.

    The bytes of an array are sorted by significance, first all lowest bytes, which compresses better.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def floats(self, values: Sequence[float | None]) -> dict[str, Any]:
        """Store numbers with four significant digits; None becomes NaN."""
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
    """Return numbers as float32 whose last bits are 0; infinities and NaN remain."""
    bits = array.astype("<f4").view("<u4")
    unused = 23 - _DIGITS
    nearest = (bits + np.uint32(1 << (unused - 1))) & np.uint32(-(1 << unused) & 0xFFFFFFFF)
    return np.where(np.isfinite(array), nearest, bits).astype("<u4").view("<f4")


def packed(header: dict[str, Any], arrays: Arrays) -> bytes:
    """Return the length of the header, the header as JSON and the arrays, compressed by gzip.

    Numbers of the header must be finite, because JSON has no others.
    """
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = text.encode("utf-8", errors="replace")  # a lone surrogate of a damaged text becomes a question mark
    return gzip.compress(len(data).to_bytes(4, "little") + data + arrays.bytes(), mtime=0)
