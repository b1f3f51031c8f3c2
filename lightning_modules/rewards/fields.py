"""Fields of an example that a reward reads."""

from __future__ import annotations

from numbers import Number
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example


def field_of(example: Example, option: str, name: str) -> Any:
    """Return a field of an example.

    Args:
        example: the example.
        option: argument of the reward that names the field, named by the error.
        name: name of the field.

    Raises:
        ValueError: the example has no such field, or None in it.
    """
    value = example.get(name)
    if value is None:
        raise ValueError(
            f"`{option}` is {name!r}, which the example lacks; its fields are {', '.join(map(repr, example))}. Pass "
            f"the name of one of them as `{option}`."
        )
    return value


def text_of(value: object, option: str, name: str) -> str:
    """Return a reference answer as a text.

    Args:
        value: the answer, a text or a number.
        option: argument of the reward that names the field of the answer, named by the error.
        name: name of the field.

    Raises:
        ValueError: the answer is of another type or not a number, and no completion could be right.
    """
    is_number = isinstance(value, Number) and value == value
    if not isinstance(value, str) and not is_number:
        raise ValueError(
            f"`{option}` is {name!r}, where an example has {str(value)[:80]!r} of type {type(value).__name__}; pass a "
            "field with a text or a number. `columns` of HubDataset reads a part of a field, such as 'answer.0'."
        )
    return str(value)
