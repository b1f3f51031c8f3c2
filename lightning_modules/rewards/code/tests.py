"""Tests of an example: Python code that follows the code of a completion."""

from __future__ import annotations

import ast
import functools

from lightning_modules.prompts import Example
from lightning_modules.rewards.fields import field_of


def tests_of(example: Example, field: str) -> list[str]:
    """Return the tests of an example, as texts that run one after another.

    Args:
        example: the example.
        field: name of its field with the tests, a text or a list of texts.

    Raises:
        ValueError: there is no such field, or the tests would pass any completion, or none.
    """
    value = field_of(example, "tests_field", field)
    texts = (value,) if isinstance(value, str) else value
    are_texts = isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)
    reason = _fault(tuple(texts)) if are_texts else f"of type {type(value).__name__}"
    if reason is not None:
        raise ValueError(
            f"`tests_field` is {field!r}, where an example has {str(value)[:80]!r}, {reason}; pass a text, or a list "
            "of texts, of Python code that calls and asserts, such as `assert solve(2) == 4`."
        )
    return list(texts)


@functools.lru_cache(maxsize=1024)
def _fault(texts: tuple[str, ...]) -> str | None:
    """Return what is wrong with tests that would fail every completion, or pass each; None for others."""
    try:
        nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"which is not Python code ({error})"
    tested = any(isinstance(node, (ast.Assert, ast.Raise, ast.Call)) for node in nodes)
    return None if tested else "which tests nothing"
