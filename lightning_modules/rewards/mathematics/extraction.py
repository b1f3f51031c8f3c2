"""Final answer of a completion, as the text that states it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

AnswerForm = Literal["boxed", "answer_tags", "hashes", "last_number"]
r"""Form in which a completion states its final answer.

- `boxed`: the last `\boxed{...}` or `\fbox{...}` whose braces close;
- `answer_tags`: the last `<answer>...</answer>`;
- `hashes`: the rest of the line after the last `####`;
- `last_number`: the last plain number of the text.
"""

_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
# A dash after a letter, a digit or a bracket is a minus between two terms, or a hyphen.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[-\u2212])?(?:(?<!\d)10\^(?:\{-?\d{1,3}\}|\d{1,3})"
    r"|(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w)|\s*(?:\\times|\\cdot|\*|\u00d7)\s*10\s*\^\s*(?:\{\s*-?\d{1,3}\s*\}|\d{1,3})|/\d+)?)"
)
_BRACE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:boxed|fbox)\s*\{|[{}])|\\[{}]")


def final_answer(completion: str, forms: Sequence[AnswerForm] = ("boxed", "answer_tags", "hashes")) -> str | None:
    """Return the final answer in the first of `forms` that the completion has, or None."""
    return next((answer for form in forms if (answer := _READERS[form](completion)) is not None), None)


def _last_box(text: str) -> str | None:
    """Return the content of the last box whose braces close, in one pass over the text."""
    openings: list[int | None] = []  # start of the content of each open box; None for other braces
    last: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        if match[1] is None:  # an escaped brace
            continue
        if match[1] == "}":
            opening = openings.pop() if openings else None
            if opening is not None:
                last = opening, match.start(1)
        else:
            openings.append(match.end() if match[1] != "{" else None)
    return None if last is None else text[slice(*last)]


def _last_match(pattern: re.Pattern[str], group: int) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        last = deque(pattern.finditer(text), maxlen=1)
        return last[0][group] if last else None

    return read


def _last_number(text: str) -> str | None:
    number = _last_match(_NUMBER, 0)(text)
    return None if number is None else number.replace("\u2212", "-").replace("\u00d7", "\\times")


_READERS: dict[AnswerForm, Callable[[str], str | None]] = {
    "boxed": _last_box,
    "answer_tags": _last_match(_TAGS, 1),
    "hashes": _last_match(_HASHES, 1),
    "last_number": _last_number,
}
