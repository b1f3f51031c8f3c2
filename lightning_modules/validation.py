"""Checks of constructor arguments; each error names the argument, its value and the remedy."""

from __future__ import annotations

import math
from typing import Any, get_args


def require_at_least(minimum: float, **numbers: float | None) -> None:
    """Check that numbers, named by their arguments, are finite and not below a minimum; None passes.

    Raises:
        ValueError: a number is below the minimum, infinite or NaN.
    """
    for name, number in numbers.items():
        if number is not None and not minimum <= number < math.inf:
            raise ValueError(f"`{name}` is {number}; pass {minimum} or more, a finite number.")


def require_fraction(below: float = math.inf, **numbers: float) -> None:
    """Check that numbers, named by their arguments, are fractions, from 0 to 1, and below a bound where one is given.

    Raises:
        ValueError: a number is not a fraction, or not below the bound.
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1 or number >= below:
            upper = "1" if below > 1 else f"below {below:g}"
            raise ValueError(f"`{name}` is {number}; pass a fraction, from 0 to {upper}.")


def require_one_of(literal: Any, **arguments: str) -> None:
    """Check that arguments, by name, are values of a `Literal` type.

    Raises:
        ValueError: an argument is not one of them.
    """
    for name, value in arguments.items():
        if value not in get_args(literal):
            raise ValueError(f"`{name}` is {value!r}; pass one of {', '.join(get_args(literal))}.")
