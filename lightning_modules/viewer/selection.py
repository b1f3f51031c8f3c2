"""Selection of completions where runs have more than a page can hold: whole groups, evenly over all files."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lightning_modules.viewer.kept_rows import KeptRows

_Item = TypeVar("_Item")
_Group = tuple[int, int, int]  # run, first step of the rollout, group


@dataclass(frozen=True)
class ShownGroups:
    """Groups of a run that a page shows.

    Args:
        completions: first step of the rollout and number of each group whose completions are shown.
        token_rows: optimizer step and number of each group whose token numbers of this step are shown.
    """

    completions: set[tuple[int, int]] = field(default_factory=set)
    token_rows: set[tuple[int, int]] = field(default_factory=set)


def shown_groups(kept: Sequence[KeptRows], max_completions: int, max_tokens: int) -> list[ShownGroups]:
    """Return the groups that are shown of each run, those with token numbers first.

    Args:
        kept: rows that the runs have.
        max_completions: limit of the completions of all runs.
        max_tokens: limit of the tokens of all runs, in each step that they were kept in.
    """
    sizes = Counter((run, *key[:2]) for run, rows in enumerate(kept) for key in rows.keys)
    tokens: Counter[tuple[_Group, int]] = Counter()
    for run, rows in enumerate(kept):
        for row in rows.token_rows:
            tokens[(run, *row.key[:2]), row.step] += row.tokens
    with_tokens = spread(sorted(tokens), max_completions, lambda place: sizes[place[0]])
    with_tokens = spread(with_tokens, max_tokens, tokens.__getitem__)
    groups = {group for group, _ in with_tokens}
    left = max_completions - sum(sizes[group] for group in groups)
    others = {(run, *key[:2]) for run, rows in enumerate(kept) for key in rows.lengths} - groups
    groups.update(spread(sorted(others), left, sizes.__getitem__))
    shown = [ShownGroups() for _ in kept]
    for run, start, group in groups:
        shown[run].completions.add((start, group))
    for (run, _, group), step in with_tokens:
        shown[run].token_rows.add((step, group))
    return shown


def spread(items: Sequence[_Item], limit: int, size: Callable[[_Item], int]) -> list[_Item]:
    """Return as many items as the limit allows, evenly over all of them and in their order.

    The last item is among them, and so is the first if there are two. An item that exceeds the limit by itself is left
    out.

    Args:
        items: items.
        limit: sum of the sizes that may be returned.
        size: function that returns the size of an item, such as its number of tokens.
    """
    fitting = [item for item in items if size(item) <= limit]
    sizes = [size(item) for item in fitting]

    def total(count: int) -> int:
        return sum(sizes[index] for index in _evenly(len(sizes), count))

    # Where sizes differ, the total need not rise with the count; the count that bisection finds is within the limit.
    count = bisect_right(range(1, len(sizes) + 1), limit, key=total)
    return [fitting[index] for index in _evenly(len(sizes), count)]


def _evenly(number: int, count: int) -> Sequence[int]:
    """Return indices below a number, from the first to the last; the last if only one is asked for."""
    if count == 1:
        return [number - 1]
    return [index * (number - 1) // (count - 1) for index in range(count)]
