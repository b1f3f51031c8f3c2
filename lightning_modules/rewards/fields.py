"""Fields of an example that a reward reads."""

from __future__ import annotations

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
