r"""Plain numbers: `-1,234.5`, `1/2`, `\frac{1}{2}`, `3\frac{1}{2}`, `3 1/2`, `1.8e1`, `18\times10^{6}`, `10^6`."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_POWER = r"10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d{1,3})\s*\}|(?P<digit>\d{1,3}))"
_FORMS = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?"
    rf"|(?:(?P<factor>{_DECIMAL})\s*(?:\\times|\\cdot|\*|x)\s*)?{_POWER}"
    rf"|(?P<whole>\d+)?\s*\\frac\s*\{{\s*(?P<top>[+-]?\d+)\s*\}}\s*\{{\s*(?P<bottom>[+-]?\d+)\s*\}}"
    rf"|(?:(?P<mixed>\d+)\s+(?=\d)|(?=[+-]?\d))(?P<over>[+-]?\d+)\s*/\s*(?P<under>\d+)"
    rf")"
)
_LONGEST = 1000


def plain_number(text: str) -> Fraction | None:
    """Return the value of a text that is one number, without an operation to carry out, or None.

    A fraction of integers is a number; one that stands for an integer, such as 36/2, is a division to carry out.
    """
    match = _FORMS.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        return None
    part = match.groupdict()
    if part["top"] is not None or part["over"] is not None:
        value = _fraction(part)
    elif part["decimal"] is not None:
        value = _decimal(part["decimal"]) * _power(part["exponent"])
    else:
        value = _decimal(part["factor"] or "1") * _power(part["braced"] or part["digit"])
    return value if value is None else (-value if part["sign"] == "-" else value)


def _fraction(part: dict[str, str | None]) -> Fraction | None:
    top, bottom = (int(part[name] or part[other] or 0) for name, other in (("top", "over"), ("bottom", "under")))
    if not bottom or top % bottom == 0:
        return None
    return Fraction(top, bottom) + int(part["whole"] or part["mixed"] or 0)


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").rstrip("."))


def _power(exponent: str | None) -> Fraction:
    return Fraction(10) ** int(exponent or 0)
