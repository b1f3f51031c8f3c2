"""Selection of completions where there are more than a page can hold: whole groups, evenly over the files."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

_Row = TypeVar("_Row")


class Budget:
    """A limit that several sources share; what one of them does not use is left to those that follow.

    Args:
        limit: limit of all sources together.
        sources: number of sources.
    """

    def __init__(self, limit: int, sources: int) -> None:
        self.left = limit
        self._sources = sources

    def next_share(self) -> int:
        """Return the share of the next source."""
        share = self.left // max(self._sources, 1)
        self._sources -= 1
        return share

    def use(self, amount: int) -> None:
        """Subtract what a source has used."""
        self.left -= amount


def spread(rows: Iterable[_Row], share: int, group: Callable[[_Row], Hashable], size: Callable[[_Row], int]) -> Any:
    """Return the rows of as many groups as the share allows, evenly over all groups, in their order.

    Args:
        rows: rows.
        share: sum of the sizes that may be returned.
        group: function that returns the group of a row.
        size: function that returns the size of a row, such as 1 or its number of tokens.
    """
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    sizes = [sum(map(size, members)) for members in groups.values()]
    count = len(sizes)
    while count and sum(sizes[index] for index in _evenly(len(sizes), count)) > share:
        count -= 1
    members = list(groups.values())
    return [row for index in _evenly(len(sizes), count) for row in members[index]]


def _evenly(number: int, count: int) -> Sequence[int]:
    return [index * number // count for index in range(count)]
