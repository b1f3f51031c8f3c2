"""Types of command-line arguments: numbers, seeds, objectives, and lists without a value that is there twice."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from aggregate_po import PolicyObjective, objective_of

Number = TypeVar("Number", int, float)
Value = TypeVar("Value", bound=Hashable)


class Variant(Protocol):
    """An objective of an experiment."""

    def objective(self) -> PolicyObjective:
        """Return a new objective."""


AnyVariant = TypeVar("AnyVariant", bound=Variant)


def seeds(text: str) -> tuple[int, ...]:
    """Return seeds that are separated by commas, as the type of an argument."""
    return distinct([number(part, int, "a whole number from 0", lambda seed: seed >= 0) for part in text.split(",")])


def counts(text: str) -> tuple[int, ...]:
    """Return whole numbers from 1 that are separated by commas, as the type of an argument."""
    return distinct([count(part) for part in text.split(",")])


def count(text: str) -> int:
    """Return a whole number from 1, as the type of an argument."""
    return number(text, int, "a whole number from 1", lambda number: number >= 1)


def number(text: str, kind: Callable[[str], Number], words: str, fits: Callable[[Number], bool]) -> Number:
    """Return a number, as the type of an argument.

    Args:
        text: Number as text.
        kind: Makes a number of a text.
        words: What is asked for, for the error.
        fits: Whether a number is in the range.
    """
    try:
        found = kind(text)
    except ValueError:
        found = None
    if found is None or not fits(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
    return found


def distinct(values: Sequence[Value]) -> tuple[Value, ...]:
    """Return values of which none is there twice, as the type of an argument."""
    if twice := [value for value, times in Counter(values).items() if times > 1]:
        raise argparse.ArgumentTypeError(f"{twice[0]} is there twice; pass it once")
    return tuple(values)


def names(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas, with or without blanks, as the type of an argument."""
    found = list(filter(None, (name.strip() for name in text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} has no name; pass one, or several by commas")
    return distinct(found)


def objectives(text: str) -> dict[str, PolicyObjective]:
    """Return objectives by their names or import paths, which are separated by commas, as the type of an argument."""
    return {name: made(name, partial(objective_of, name)) for name in names(text)}


def made(name: str, make: Callable[[], PolicyObjective]) -> PolicyObjective:
    """Return an objective, as the type of an argument.

    Args:
        name: Name of the objective, for the error.
        make: Makes it.
    """
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} cannot be made: {error}") from None


def made_variants(text: str, variant: Callable[[str], AnyVariant]) -> tuple[AnyVariant, ...]:
    """Return the variants whose names are separated by commas, as the type of an argument.

    Args:
        text: Names, by commas.
        variant: Returns the variant with a name.
    """
    found = {name: variant(name) for name in names(text)}
    for name, each in found.items():
        made(name, each.objective)
    return tuple(found.values())
