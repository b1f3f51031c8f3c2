"""Checks of constructor arguments; each error names the argument, its value and the remedy."""

from __future__ import annotations

from typing import Any, get_args


def require_at_least(least: float, **numbers: float | None) -> None:
    """Check numbers by the names of their arguments; None is no number.

    Raises:
        ValueError: a number is smaller, or NaN.
    """
    for name, number in numbers.items():
        if number is not None and not number >= least:
            raise ValueError(f"`{name}` is {number}; pass {least} or more.")


def require_one_of(words: Any, **arguments: str) -> None:
    """Check arguments that are words of a `Literal`.

    Raises:
        ValueError: an argument is another one.
    """
    for name, word in arguments.items():
        if word not in get_args(words):
            raise ValueError(f"`{name}` is {word!r}; pass one of {', '.join(get_args(words))}.")
