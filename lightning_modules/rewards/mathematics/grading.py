"""Equality of two mathematical answers: as text, as exact numbers, then by math-verify."""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from lightning_modules.rewards.mathematics.normalization import normalized, quantity
from lightning_modules.rewards.mathematics.numbers import plain_number

_LONGEST = 1000  # characters; sympy takes seconds and much memory for longer answers
_WORD = re.compile(r"[^\W\d_]{4,}( [^\W\d_]+)*")  # math-verify reads a word as the product of its letters
_BASE = re.compile(r"\d_\d+$")
# What asks for a computation of unbounded size. Where the reference answer has it, so may the answer.
_COSTLY = re.compile(
    r"!|\\(?:d|t)?binom|\\sum|\\prod|\\int|\\lim|\^\s*\{?[^{}]*\^|\^\s*\{?\s*-?\d{4}|\d{2}\s*\}?\s*\)[\s})]*\^"
)
_PERCENT = re.compile(r"%|\bpercent\b", re.IGNORECASE)


def same_answer(answer: str, reference: str, evaluate: bool = False) -> bool:
    r"""Return whether two answers are equal.

    Args:
        answer: the answer to grade, such as the content of a box.
        reference: the right answer.
        evaluate: whether an answer such as `17 + 1` or `36/2` is right where the reference is the number 18.
            Otherwise a policy is rewarded for copying the question into the box.

    Raises:
        ModuleNotFoundError: math-verify is needed and not installed.
    """
    found, expected = normalized(answer), normalized(reference)
    if not found or not expected:
        return False
    expected_number = plain_number(expected)
    found_number = plain_number(found) if expected_number is None else stated_number(found)
    if expected_number is not None and found_number is not None:
        return _is_same_number(answer, found_number, reference, expected_number)
    if folded(found) == folded(expected):
        return True
    if expected_number is not None and not evaluate:
        return False
    if _WORD.fullmatch(found) or _WORD.fullmatch(expected):
        return False
    if bool(_BASE.search(found)) != bool(_BASE.search(expected)) or _too_costly(found, expected):
        return False
    return _verified(found, expected)


def folded(text: str) -> str:
    """Return the text without blanks; words in lower case, variables as they are."""
    bare = text.replace(" ", "")
    return bare.casefold() if len(bare) > 1 and bare.isalpha() else bare


def stated_number(text: str) -> Fraction | None:
    """Return the number that a normalized answer is, or states, as `AB = 18` and `18 m` do; None for any other."""
    number = plain_number(text)
    return plain_number(quantity(text)) if number is None and len(text) <= _LONGEST else number


def _is_same_number(answer: str, found: Fraction, reference: str, expected: Fraction) -> bool:
    """Return whether two numbers are equal, or one is the other as a percentage, 0.18 and 18 %.

    Where the reference has no sign, `18 %` is right for 18, as an answer in percent; `0.5 %` is wrong for 0.5.
    """
    percent = bool(_PERCENT.search(answer)), bool(_PERCENT.search(reference))
    if percent == (True, False):
        return found == expected * 100 or (found == expected and abs(expected) >= 1)
    return found == expected or (percent == (False, True) and found * 100 == expected)


def _too_costly(found: str, expected: str) -> bool:
    return len(found) > _LONGEST or (bool(_COSTLY.search(found)) and not _COSTLY.search(expected))


def _verified(found: str, expected: str) -> bool:
    import math_verify

    # Its time limits are signals, which only the main thread may use; `RewardPool` has limits of its own.
    return bool(math_verify.verify(_parsed(expected), _parsed(found), timeout_seconds=None))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    """Return the expressions that math-verify reads in a text."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs whole completions
    # `normalized` has removed units; math-verify would also take the product in `x^2 + 2ab` for one.
    latex = math_verify.LatexExtractionConfig()
    latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
    formats = [latex, math_verify.ExprExtractionConfig()]
    parsed: list[Any] = math_verify.parse(f"${text}$", formats, parsing_timeout=None)
    return parsed
