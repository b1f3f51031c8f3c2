r"""One spelling for answers that are written in different ways: `\dfrac12`, `1{,}000`, `18\text{ dollars}.`"""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Applied in order. A backslash before a command is never the second one of a line break in a matrix.
_REWRITES = [
    (r"[\u2212\u2013]", "-"),
    (r"(?<!\\)\\(?:displaystyle|textstyle|left|right|big|Big|bigg|Bigg|bf|rm|it)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\(?:boxed|fbox)(?=\s*\{)", ""),  # a box in the box
    (r"(?<!\\)\\[$]|[$]", ""),
    (r"(?<!\\)\\%|%", "%"),
    (r"\{,\}", ","),
    (r"(?<!\\)\\!", ""),  # a negative space
    (r"(?<=\d)(?<!\\)\\,(?=\d{3}(?!\d))", ","),  # thousands
    (r"(?<!\\)\\[,;: ]|(?<!\\)\\(?:quad|qquad|thinspace)(?![a-zA-Z])|~|\u00a0", " "),
    (r"(?<!\\)\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\w*|\u00b0", ""),
    (r"\\(?:text|mbox|textrm|mathrm|textbf|mathbf|textit|operatorname|textsf)\s*\{\s*(?:and|or)\s*\}", ","),
    (rf"(?<=[\d}})])\s*\\(?:text|mbox|textrm|mathrm)\s*\{{\s*((?:{'|'.join(_FACTORS)})[^{{}}\d]*)\}}", r" \1"),
    # A unit: text after a number.
    (r"(?:(?<=[\d})])|(?<=\\pi))\s*\\(?:text|mbox|textrm|mathrm)\s*\{(?:[^{}\d]|\^\{?-?\d\}?)*\}(?:\^\{?\d\}?)?", ""),
    (r"\\(?:text|mbox|textrm|mathrm|textbf|mathbf|textit|operatorname|textsf)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:pmatrix|bmatrix)", r"\\matrix"),
    (r"(?<=\d)\s+(?:and|or)\s+(?=[-\d.])", ", "),
    (r"_\{(\d+)\}", r"_\1"),
    (r"\s+", " "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]
_ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_\w)?\s*=\s*([^=<>]+)$")
_CHOICE = re.compile(r"^\(([A-Za-z])\)$")
_FACTOR = re.compile(rf"^([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)) ({'|'.join(_FACTORS)})s?(?![A-Za-z])(.*)$", re.IGNORECASE)
# Other words of two letters, or of three without a blank before them, are products such as `2ab`.
_SHORT_UNIT = (
    r"(?:cm|mm|km|dm|nm|in|ft|yd|mi|sq|cu|kg|mg|lbs?|oz|m[lL]|hrs?|min|sec|ms|[mk]ph|am|pm|deg|rad|m/s)(?![A-Za-z])"
)
_UNIT = re.compile(
    rf"^(.*[\d}})])(?: (?!(?:sin|cos|tan|cot|log|exp|sqrt)\b)(?:{_SHORT_UNIT}|[A-Za-z]{{3,}}|/)"
    rf"|(?:{_SHORT_UNIT}|[A-Za-z]{{4,}}))(?: ?/ ?[A-Za-z]+| [A-Za-z]+)*(?:\^\{{?\d\}}?)?$"
)
_PLAIN = re.compile(r"^[-+\d.,/ ]+$")
# A name or a sum of names, such as `x_1 + y`, `f(2)` or `\angle ABC`; `2x = 18` does not say that x is 18.
_STATEMENT = re.compile(
    r"^(?:[^=<>^*/\d()_]|_(?:\{[^{}]*\}|[^\W_]\d*)|\([^()=<>]*\))*(?<!!)(?:=|\\approx(?![a-zA-Z]))\s*([^=<>]+)$"
)
_CURRENCY = re.compile(r"^(?:\\pounds(?![a-zA-Z])|\\euro(?![a-zA-Z])|[\u20ac\u00a3\u00a5])\s*")
_SUFFIX = re.compile(r"(?<=\d)\s*(?:[mgshLJNWVAKCF](?:\^\{?[23]\}?)?|\^?\{?(?:st|[nr]d|th)\}?)$")


def normalized(answer: str) -> str:
    """Return an answer in one spelling; units, percent and degree signs are removed, and `5 million` is a number."""
    text = answer.strip()
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").replace("%", "").strip()
    if assignment := _ASSIGNMENT.match(text):
        text = assignment[1].strip()
    if choice := _CHOICE.match(text):
        text = choice[1]
    if factor := _FACTOR.match(text):
        text = f"{Decimal(factor[1].replace(',', '')) * _FACTORS[factor[2].lower()]:f}{factor[3]}"
    if (unit := _UNIT.match(text)) and _PLAIN.match(unit[1]):
        text = unit[1].strip()
    return text.removeprefix("+").strip()


def quantity(answer: str) -> str:
    r"""Return what a normalized answer says that a quantity is: `18` for `AB = (18)`, `\approx 18 m` and `18th`.

    A single letter counts as a unit here, so this is for answers of which a number is expected: `2m` can be a product.
    """
    text = statement[1].strip() if (statement := _STATEMENT.match(answer)) else answer
    text = _CURRENCY.sub("", text)
    while text[:1] + text[1:][-1:] in ("()", "{}"):
        text = text[1:-1].strip()
    return _SUFFIX.sub("", text)
