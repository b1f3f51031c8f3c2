"""Equality of two mathematical answers: as text, as exact numbers, then by math-verify."""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from lightning_modules.rewards.mathematics.normalization import normalized
from lightning_modules.rewards.mathematics.numbers import plain_number

_LONGEST = 1000  # characters; sympy takes seconds and much memory for longer answers
_WORD = re.compile(r"[^\W\d_]{4,}( [^\W\d_]+)*")  # math-verify reads a word as the product of its letters
_BASE = re.compile(r"\d_\d+$")
# What asks for a computation of unbounded size. Where the reference answer has it, so may the answer.
_COSTLY = re.compile(r"!|\\(?:d|t)?binom|\\sum|\\prod|\\int|\\lim|\^\s*\{?[^{}]*\^|\^\s*\{?\s*-?\d{4}")


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
    if folded(found) == folded(expected):
        return True
    expected_number = plain_number(expected)
    found_number = plain_number(found)
    if expected_number is not None and found_number is not None:
        return found_number == expected_number or _is_percent_of(answer, found_number, reference, expected_number)
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


def _is_percent_of(answer: str, found: Fraction, reference: str, expected: Fraction) -> bool:
    """Return whether one is the other as a percentage, 0.18 and 18 %."""
    percent = "%" in answer, "%" in reference
    return percent == (False, True) and found * 100 == expected


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
