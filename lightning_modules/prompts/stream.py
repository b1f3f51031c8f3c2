"""The prompts of one rank, one after another, each tokenized once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.prompts.base import Example, PromptDataset
from lightning_modules.prompts.order import PromptOrder


@dataclass(frozen=True)
class Prompt:
    """An example with the tokens of its prompt.

    Args:
        example: a mapping with "prompt" and whatever the reward reads.
        token_ids: of the prompt, the chat template's included.
    """

    example: Example
    token_ids: tuple[int, ...]


class PromptStream:
    """This rank's share of an endless order over a data set: the ranks take the prompts in turn.

    Args:
        dataset: the examples.
        order: in which they come.
        prompt_of: gives an example with the tokens of its prompt.
        rank: number of this data-parallel rank.
        ranks: how many there are.
    """

    def __init__(
        self,
        dataset: PromptDataset | Sequence[Example],
        order: PromptOrder,
        prompt_of: Callable[[Example], Prompt],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._dataset, self._order, self._prompt_of = dataset, order, prompt_of
        self._rank, self._ranks = rank, ranks
        self._upcoming: list[Prompt] = []  # tokenized already
        self.position: int | None = None  # prompts that all ranks together have taken; None before the first

    def begin_at(self, position: int) -> None:
        """Begin there, unless some were taken, or a position was restored, before."""
        if self.position is None:
            self.position = position

    def peek(self, count: int) -> list[Prompt]:
        """Return the next prompts of this rank, and leave them where they are."""
        self.begin_at(0)
        assert self.position is not None
        first = self.position + len(self._upcoming) * self._ranks
        indices = self._order.slice(first, self.position + count * self._ranks)
        for index in indices[self._rank :: self._ranks]:
            self._upcoming.append(self._prompt_of(self._dataset[index]))
        return self._upcoming[:count]

    def take(self, count: int) -> list[Prompt]:
        """Return the next prompts of this rank; the other ranks take as many."""
        taken = self.peek(count)
        self._upcoming = self._upcoming[count:]
        self.position = (self.position or 0) + count * self._ranks
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the position of `state_dict`."""
        self.position, self._upcoming = state["position"], []
