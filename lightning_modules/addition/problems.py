"""Addition problems with two- and three-digit numbers, and worked answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lightning_modules.prompts import PromptDataset
from lightning_modules.seeding import derived_seed

_MAX_TRAINING, _MAX_HELD_OUT = 900_000, 40_000
_HELD_OUT_PERIOD = 20  # one pair of numbers in this many is held out


class AdditionProblems(PromptDataset):
    """Addition problems with their answers, deterministic for given arguments.

    Training and held-out problems never share a pair of numbers, and no pair occurs twice.

    Args:
        size: Number of problems.
        held_out: Whether to sample from the held-out pairs of numbers rather than from the training pairs.
        seed: Seed of the sampled problems.

    Raises:
        ValueError: `size` is not positive, or too large to sample distinct pairs quickly.
    """

    def __init__(self, size: int = 4096, held_out: bool = False, seed: int = 0) -> None:
        maximum = _MAX_HELD_OUT if held_out else _MAX_TRAINING
        if not 1 <= size <= maximum:
            raise ValueError(f"`size` is {size}; pass the number of problems, from 1 to {maximum}.")
        sampled = random_pairs(random.Random(f"problems {seed}"), held_out)
        pairs: dict[tuple[int, int], None] = {}  # an ordered set
        while len(pairs) < size:
            pairs[next(sampled)] = None
        self._pairs = list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's overloads say nothing here
        first, second = self._pairs[index]
        return {"prompt": question(first, second), "answer": str(first + second)}


def random_pairs(rng: random.Random, held_out: bool) -> Iterator[tuple[int, int]]:
    """Yield random pairs of two- or three-digit numbers without end, from the training or the held-out split."""
    while True:
        first, second = (rng.randint(10, 99) if rng.random() < 0.5 else rng.randint(100, 999) for _ in range(2))
        # Both orders of a pair are in the same split, and a hash makes the split independent of the digits.
        if (derived_seed(*sorted((first, second))) % _HELD_OUT_PERIOD == 0) == held_out:
            yield first, second


def question(first: int, second: int) -> str:
    """Return the prompt of an addition problem."""
    return f"What is {first} + {second}?"


def guessed_answer(first: int, second: int, spread: int, rng: random.Random) -> str:
    r"""Return a guess without working, such as `\boxed{571}`, at most `spread` away from the sum."""
    return _boxed(first + second + rng.randint(-spread, spread))


def worked_answer(first: int, second: int, noise: float = 0.0, rng: random.Random | None = None) -> str:
    r"""Return an answer that works out the sum column by column, from the last column to the first.

    A column is written as digit + digit [+ carry] = carry and digit. For 472 + 96 the answer is
    `2+6=08 7+9+0=16 4+0+1=05 \boxed{568}`.

    Args:
        first: first summand.
        second: second summand.
        noise: probability of a wrong digit in a column; the boxed result repeats the mistake.
        rng: random generator of the mistakes; there are none without it.
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
    """Return the digits from the last to the first, with leading zeros."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]
