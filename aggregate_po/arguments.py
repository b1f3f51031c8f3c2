"""Checks of numeric constructor arguments; each error names the argument, its value and the remedy."""

from __future__ import annotations

import math
from typing import SupportsFloat, SupportsIndex


def require_numbers(**numbers: float) -> None:
    """Check that values, named by their arguments, are numbers.

    Raises:
        ValueError: a value is something else, such as a text.
    """
    for name, number in numbers.items():
        if not isinstance(number, (SupportsFloat, SupportsIndex)):
            raise ValueError(f"`{name}` is {number!r}; pass a number.")


def require_finite(**numbers: float) -> None:
    """Check that numbers, named by their arguments, are neither infinite nor NaN.

    Raises:
        ValueError: a number is not finite, or no number.
    """
    require_numbers(**numbers)
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"`{name}` is {number}; pass a finite number.")


def require_non_negative(remedy: str = "pass 0 or more, a finite number", /, **numbers: float) -> None:
    """Check that numbers, named by their arguments, are finite and not negative; the error ends with the remedy.

    Raises:
        ValueError: a number is negative, infinite, NaN, or no number.
    """
    require_numbers(**numbers)
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"`{name}` is {number}; {remedy}.")


def require_positive(**numbers: float) -> None:
    """Check that numbers, named by their arguments, are finite and positive.

    Raises:
        ValueError: a number is negative, 0, infinite, NaN, or no number.
    """
    require_numbers(**numbers)
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"`{name}` is {number}; pass a positive number, and a finite one.")


def require_whole(minimum: int, **numbers: float | None) -> None:
    """Check that numbers, named by their arguments, are whole and not below a minimum; None passes.

    Raises:
        ValueError: a number is below the minimum, or it has another type than that of whole numbers.
    """
    for name, number in numbers.items():
        if number is not None and not (isinstance(number, SupportsIndex) and number.__index__() >= minimum):
            raise ValueError(f"`{name}` is {number}; pass a whole number, {minimum} or more.")
