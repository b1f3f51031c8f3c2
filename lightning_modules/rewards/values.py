"""Values of rewards: conversion to float64, and the errors of what is no finite number."""

from __future__ import annotations

import math
from typing import Any

_LONGEST = 200  # characters of a text or value in a message


def finite_number(value: Any) -> float:
    """Return a value as a float, exactly where a float64 holds it.

    Whatever converts to a real number is taken: bool, int, Decimal, Fraction, scalars of NumPy and torch on any device,
    and arrays of one element.

    Raises:
        ValueError: the value is no number, is not finite, or is beyond the range of float64; the message says which.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        raise ValueError(f"{shortened(value)}, which is not a single number") from None
    # Text converts to a float as well, but is no number.
    if not hasattr(type(number), "__float__"):
        raise ValueError(f"{shortened(value)} ({type(number).__name__}), which is not a real number")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{shortened(value)}, which is not a real number") from None
    if math.isinf(result) and number not in (math.inf, -math.inf):
        raise ValueError(f"{shortened(value)}, which is beyond the range of float64, +-1.8e308")
    if not math.isfinite(result):
        raise ValueError(f"{shortened(value)}, which is not finite")
    return result


def shortened(value: Any) -> str:
    """Return the `repr` of a value, without its middle if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        text = f"an integer of {value.bit_length()} bits"
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}"
