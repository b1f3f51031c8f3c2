"""Stream of the tokenized prompts of one data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.prompts.base import Example, PromptDataset, location_in
from lightning_modules.prompts.order import PromptOrder


@dataclass(frozen=True)
class Prompt:
    """An example with the token ids of its prompt.

    Args:
        example: mapping with "prompt" and the fields that the reward reads.
        token_ids: token ids of the prompt, with the chat template if there is one.
    """

    example: Example
    token_ids: tuple[int, ...]


class PromptStream:
    """Shard of one data-parallel rank of an endless order over a data set; ranks take prompts in turn.

    Args:
        dataset: examples of the data set.
        order: order of the examples.
        prompt_of: tokenizes the prompt of an example, given the example and its place for error messages.
        rank: data-parallel rank.
        ranks: number of data-parallel ranks.
    """

    def __init__(
        self,
        dataset: PromptDataset | Sequence[Example],
        order: PromptOrder,
        prompt_of: Callable[[Example, str], Prompt],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._dataset, self._order, self._prompt_of = dataset, order, prompt_of
        self._rank, self._ranks = rank, ranks
        self._upcoming: list[Prompt] = []  # already tokenized
        self.position: int | None = None  # prompts that all ranks together have taken; None before the first

    def use(self, dataset: Sequence[Example], order: PromptOrder) -> None:
        """Take the prompts of another data set, such as one without long prompts; the position stays."""
        self._dataset, self._order = dataset, order

    def begin_at(self, position: int) -> None:
        """Set the position, unless prompts have been taken or a position has been restored."""
        if self.position is None:
            self.position = position

    def peek(self, count: int) -> list[Prompt]:
        """Return the next prompts of this rank without taking them."""
        self.begin_at(0)
        assert self.position is not None
        first = self.position + len(self._upcoming) * self._ranks
        indices = self._order.slice(first, self.position + count * self._ranks)
        for index in indices[self._rank :: self._ranks]:
            location = location_in("dataset", self._dataset, index)
            self._upcoming.append(self._prompt_of(self._dataset[index], location))
        return self._upcoming[:count]

    def take(self, count: int) -> list[Prompt]:
        """Return the next prompts of this rank and advance the position; all ranks must take the same number."""
        taken = self.peek(count)
        self._upcoming = self._upcoming[count:]
        self.position = (self.position or 0) + count * self._ranks
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position of `state_dict`."""
        self.position, self._upcoming = state["position"], []
