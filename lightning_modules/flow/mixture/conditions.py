"""Prompts of the two-dimensional task."""

from __future__ import annotations

from aggregate_po.arguments import require_positive
from lightning_modules.flow.mixture.distribution import HALVES
from lightning_modules.prompts.base import StoredPrompts


class MixtureConditions(StoredPrompts):
    """Upper and lower half of the circle in turn: a prompt and the number of the condition.

    Args:
        size: Number of examples.

    Raises:
        ValueError: `size` is not positive.
    """

    def __init__(self, size: int = 64) -> None:
        require_positive(size=size)
        self._examples = [{"prompt": HALVES[index % 2], "condition": index % 2} for index in range(size)]
