r"""Verifiable reward that compares the last `\boxed{...}` of a completion with the answer."""

from __future__ import annotations

from typing import Any

from lightning_modules.prompts import Example


def boxed_answer(completion: str, example: Example) -> float:
    r"""Return 1 if the last `\boxed{...}` equals `example["answer"]` as a string or as a number, and 0 otherwise.

    Raises:
        KeyError: the example has no "answer".
    """
    expected: Any = example["answer"]
    found = last_boxed(completion)
    return float(found is not None and _same(found.strip(), str(expected).strip()))


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` with balanced braces, or None if there is none."""
    opening = r"\boxed{"
    start = text.rfind(opening)
    while start >= 0:
        depth = 1
        for end in range(start + len(opening), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(opening) : end]
        start = text.rfind(opening, 0, start)
    return None


def _same(found: str, expected: str) -> bool:
    try:
        return found == expected or float(found) == float(expected)
    except ValueError:
        return False
