r"""Verifiable reward that compares the last `\boxed{...}` of a completion with the answer."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example

_BOX = r"\boxed{"
_BRACES = re.compile(r"\\boxed\{|[{}]")
_PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def boxed_answer(completion: str, example: Example) -> float:
    r"""Return 1 if the last `\boxed{...}` holds `example["answer"]`, verbatim or as an equal number, and 0 otherwise.

    Spaces around either are ignored. As a number, two decimal numbers are compared exactly, in any spelling with the
    digits 0 to 9, a sign, a point and a power of ten: `12`, `+12.0` and `1.2e1` are equal. Everything else is text:
    separators as in `1,000` or `1_000`, fractions, percentages, units, `nan` and `inf`. An answer that is None, NaN or
    infinite has no right box.

    Raises:
        ValueError: the example has no "answer".
    """
    if "answer" not in example:
        raise ValueError(
            f"the example has no field 'answer'; its fields are {', '.join(map(repr, example))}. Use `MathReward`, "
            "whose `answer_field` names the field of the answer."
        )
    expected: Any = example["answer"]
    found = last_boxed(completion)
    return float(found is not None and _same(found.strip(), expected))


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` with balanced braces, or None if there is none.

    Of nested boxes the innermost one begins last. Escaped braces count as braces. The time is linear in the length.
    """
    openings: list[int | None] = []  # start of the content of each open box, None for other braces
    last, content = -1, None
    for brace in _BRACES.finditer(text):
        if brace[0] != "}":
            openings.append(brace.end() if brace[0] == _BOX else None)
        elif openings and (start := openings.pop()) is not None and start > last:
            last, content = start, slice(start, brace.start())
    return None if content is None else text[content]


def _same(found: str, expected: Any) -> bool:
    if expected is None or (isinstance(expected, float) and not math.isfinite(expected)):
        return False
    number = _plain_number(found)
    if isinstance(expected, Integral) and not isinstance(expected, bool):
        return number is not None and number == int(expected)  # not its text, since a huge integer has none
    text = str(expected).strip()
    return found == text or (number is not None and number == _plain_number(text))


def _plain_number(text: str) -> Decimal | None:
    """Return the number exactly; a power of ten is never written out, however large it is."""
    if not _PLAIN_NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of more than 18 digits
        return None
