"""Addition of two- and three-digit numbers, with worked answers column by column."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lightning_modules.prompts import PromptDataset
from lightning_modules.seeding import derived_seed

_MOST_TRAINED, _MOST_HELD_OUT = 900_000, 40_000
_HELD_OUT_SHARE = 20  # one pair of numbers in this many is never trained on


class AdditionProblems(PromptDataset):
    """Problems with their answers, the same for the same arguments.

    Training and held-out problems never share a pair of numbers.

    Args:
        size: number of problems.
        held_out: whether they are drawn from the pairs kept back from training, without repetition.
        seed: of the draw.

    Raises:
        ValueError: `size` is not positive, or more than there are pairs to draw without long search.
    """

    def __init__(self, size: int = 4096, held_out: bool = False, seed: int = 0) -> None:
        most = _MOST_HELD_OUT if held_out else _MOST_TRAINED
        if not 1 <= size <= most:
            raise ValueError(f"`size` is {size}; pass the number of problems, from 1 to {most}.")
        draws = random_pairs(random.Random(f"problems {seed}"), held_out)
        pairs: dict[tuple[int, int], None] = {}  # a set that keeps the order of the draw
        while len(pairs) < size:
            pairs[next(draws)] = None
        self._pairs = list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's overloads say nothing here
        first, second = self._pairs[index]
        return {"prompt": question(first, second), "answer": str(first + second)}


def random_pairs(rng: random.Random, held_out: bool) -> Iterator[tuple[int, int]]:
    """Endless pairs of numbers of two or three digits, from one side of the split."""
    while True:
        first, second = (rng.randint(10, 99) if rng.random() < 0.5 else rng.randint(100, 999) for _ in range(2))
        # Both orders of a pair stand on one side, and which side says nothing about the digits.
        if (derived_seed(*sorted((first, second))) % _HELD_OUT_SHARE == 0) == held_out:
            yield first, second


def question(first: int, second: int) -> str:
    """The prompt that asks for a sum."""
    return f"What is {first} + {second}?"


def guessed_answer(first: int, second: int, spread: int, rng: random.Random) -> str:
    r"""A bare guess, such as `\boxed{571}`, at most `spread` off the sum."""
    return _boxed(first + second + rng.randint(-spread, spread))


def worked_answer(first: int, second: int, noise: float = 0.0, rng: random.Random | None = None) -> str:
    r"""The sum worked out from the last column to the first.

    A column reads digit + digit [+ carry] = carry and digit; 472 + 96 gives `2+6=08 7+9+0=16 4+0+1=05 \boxed{568}`.

    Args:
        first: one number.
        second: the other.
        noise: probability that a column's digit is wrong; the boxed number then copies the mistake.
        rng: source of the mistakes; none are made without it.
    """
    width = max(len(str(first)), len(str(second)))
    columns, result, carry = [], "", 0
    for place, (left, right) in enumerate(zip(_digits(first, width), _digits(second, width), strict=True)):
        carried = f"+{carry}" if place else ""
        carry, digit = divmod(left + right + carry, 10)
        if rng is not None and rng.random() < noise:
            digit = (digit + rng.randint(1, 9)) % 10
        columns.append(f"{left}+{right}{carried}={carry}{digit}")
        result = f"{digit}{result}"
    if carry:
        result = f"1{result}"
    return " ".join([*columns, _boxed(int(result))])


def _boxed(number: int) -> str:
    return rf"\boxed{{{number}}}"


def _digits(number: int, width: int) -> list[int]:
    """Digits from the last to the first, with zeros in front."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]
