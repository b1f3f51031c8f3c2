r"""One spelling for answers that are written in different ways: `\dfrac12`, `1{,}000`, `18\text{ dollars}.`"""

from __future__ import annotations

import re

# Applied in order. A backslash before a command is never the second one of a line break in a matrix.
_REWRITES = [
    (r"[\u2212\u2013]", "-"),
    (r"(?<!\\)\\(?:displaystyle|textstyle|left|right|big|Big|bigg|Bigg)(?![a-zA-Z])", ""),
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
    # A unit: text after a number.
    (r"(?<=[\d})])\s*\\(?:text|mbox|textrm|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?", ""),
    (r"\\(?:text|mbox|textrm|mathrm|textbf|mathbf|textit|operatorname|textsf)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:pmatrix|bmatrix)", r"\\matrix"),
    (r"(?<=\d)\s+(?:and|or)\s+(?=[-\d.])", ", "),
    (r"_\{(\d+)\}", r"_\1"),
    (r"\s+", " "),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]
_ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_\w)?\s*=\s*([^=<>]+)$")
_CHOICE = re.compile(r"^\(([A-Za-z])\)$")
_UNIT = re.compile(r"^(.*[\d})]) ?((?:[A-Za-z]{2,}|/)(?: (?:[A-Za-z]+|/))*)(?:\^\{?\d\}?)?$")
_PLAIN = re.compile(r"^[-+\d.,/ ]+$")


def normalized(answer: str) -> str:
    """Return an answer in one spelling; units, percent signs and degree signs are removed."""
    text = answer.strip()
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".").replace("%", "").strip()
    if assignment := _ASSIGNMENT.match(text):
        text = assignment[1].strip()
    if choice := _CHOICE.match(text):
        text = choice[1]
    if (unit := _UNIT.match(text)) and _PLAIN.match(unit[1]):
        text = unit[1].strip()
    return text.removeprefix("+").strip()
