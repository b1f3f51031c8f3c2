"""Prompts of several sources, in given shares."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_modules.prompts.base import Example, PromptDataset, first_index_of, location_of
from lightning_modules.prompts.sources import PromptSource, different_prompts, examples_of, is_in_memory

_LONGEST_PASS = 10_000_000  # prompts; an order over more of them takes gigabytes


class Mixture(PromptDataset):
    """Prompts of several sources, in shares given by weights.

    One pass has every example of every source at least once. The source that is the largest for its weight appears
    exactly once; examples of the others are repeated until the shares are reached, equally often within one. The
    sources are interleaved evenly, by index alone, and `RolloutDataModule` permutes the whole in each pass.

    Args:
        sources: Sources of prompts, each in the forms of `data.dataset`.
        weights: Weight of each source; its share of the prompts is its weight divided by their sum. By the sizes of the
            sources when None, so that nothing is repeated.

    Raises:
        ValueError: there is no source, a weight is not positive, or a pass would be too long.
    """

    def __init__(self, sources: Sequence[PromptSource], weights: Sequence[float] | None = None) -> None:
        if isinstance(sources, str) or not sources:
            raise ValueError(f"`sources` is {sources!r}; pass a list with at least one source of prompts.")
        self.sources = [examples_of(f"sources[{number}]", source) for number, source in enumerate(sources)]
        _report_shared(self.sources)
        self.weights = None if weights is None else list(weights)
        counts = self._counts()
        self._starts = list(accumulate(counts[:-1], initial=0))
        # The k-th of n prompts of a source is at (k + 1/2) / n of the pass.
        times = torch.cat([(torch.arange(count, dtype=torch.double) + 0.5) / count for count in counts])
        self._order = times.argsort(stable=True)

    def _counts(self) -> list[int]:
        """Return the number of prompts of each source in a pass."""
        sizes = [len(source) for source in self.sources]
        if self.weights is None:
            return sizes
        if len(self.weights) != len(sizes) or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(
                f"`weights` is {self.weights}; pass a positive number for each of the {len(sizes)} sources, or None."
            )
        per_weight = max(size / weight for size, weight in zip(sizes, self.weights, strict=True))
        if per_weight * sum(self.weights) > max(_LONGEST_PASS, sum(sizes)):
            raise ValueError(
                f"`weights` is {self.weights}, by which a pass over sources of {sizes} prompts would have "
                f"{per_weight * sum(self.weights):,.0f}; raise the weight of the larger sources, or use a part of them."
            )
        return [max(size, round(weight * per_weight)) for size, weight in zip(sizes, self.weights, strict=True)]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's overloads say nothing here
        number, row = self._place(index)
        return self.sources[number][row]

    @override
    def location(self, index: int) -> str:
        number, row = self._place(index)
        return f"source {number}, {location_of(self.sources[number], row)}"

    @override
    def first_index(self, index: int) -> int:
        number, row = self._place(index)
        # The copies of a source follow each other, so those of its first pass come first.
        return int(self._places[self._starts[number] + first_index_of(self.sources[number], row)])

    @cached_property
    def _places(self) -> Tensor:
        """Index in the mixture of each example of the sources, one source after another."""
        return self._order.argsort()

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of a source, and the index in it, of an example."""
        flat = int(self._order[index])
        number = bisect_right(self._starts, flat) - 1
        return number, (flat - self._starts[number]) % len(self.sources[number])


def _report_shared(sources: Sequence[Sequence[Example]]) -> None:
    """Log how many prompts are in several sources; repetitions within one are reported with that source."""
    found = [_different_prompts(source) for source in sources]
    total = sum(map(len, found))
    shared = total - len(set().union(*found))
    if shared:
        rank_zero_info(
            f"`sources`: {shared:,} of {total:,} different prompts of the sources are in an earlier source, too."
        )


def _different_prompts(source: Sequence[Example]) -> set[str]:
    """Return the different prompts of a source that is in memory, or of such sources of a mixture."""
    if isinstance(source, Mixture):
        return set().union(*map(_different_prompts, source.sources))
    return different_prompts(source) if is_in_memory(source) else set()
