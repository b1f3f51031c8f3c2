"""Stream of the tokenized prompts of one data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_modules.prompts.base import Example, PromptDataset, first_index_of, location_in
from lightning_modules.prompts.order import Candidate, CandidateStage, PromptOrder


@dataclass(frozen=True)
class Prompt:
    """An example with the token ids of its prompt.

    Args:
        example: mapping with "prompt" and the fields that the reward reads.
        token_ids: token ids of the prompt, with the chat template if there is one.
        index: index of the example in the data set, the first one if it is repeated there; None if it is none of the
            data set.
        weight: importance weight of the prompt's group, by which its advantages are multiplied.
    """

    example: Example
    token_ids: tuple[int, ...]
    index: int | None = None
    weight: float = 1.0


CandidateChoice = Callable[[int, CandidateStage], Sequence[Candidate]]


class PromptStream:
    """Shard of one data-parallel rank of an endless order over a data set; ranks take prompts in turn.

    Args:
        dataset: examples of the data set.
        order: order of the examples.
        prompt_of: tokenizes the prompt of an example, given the example and its place for error messages.
        rank: data-parallel rank.
        ranks: number of data-parallel ranks.
        choose: chooses prompts for all ranks, given their number and the stage that has the next ones; the same on
            every rank, and the same when it is called again. All prompts are taken when None.

    Attributes:
        order: order of the examples; another one, without some of them, may take its place before the first prompt.
        position: number of prompts that all ranks together have taken or skipped; None before the first.
        skipped: number of prompts that all ranks together have skipped since the beginning or the resume.
    """

    def __init__(
        self,
        dataset: PromptDataset | Sequence[Example],
        order: PromptOrder,
        prompt_of: Callable[[Example, str], Prompt],
        rank: int = 0,
        ranks: int = 1,
        choose: CandidateChoice | None = None,
    ) -> None:
        self._dataset, self.order, self._prompt_of = dataset, order, prompt_of
        self._rank, self._ranks, self._choose = rank, ranks, choose
        self._tokenized: dict[int, Prompt] = {}  # by position, ahead of their turn
        self.position: int | None = None
        self.skipped = 0

    def begin_at(self, position: int) -> None:
        """Set the position, unless prompts have been taken or a position has been restored."""
        if self.position is None:
            self.position = position

    def peek(self, count: int) -> list[Prompt]:
        """Return the prompts of this rank that `take` with the same number would return, without taking them."""
        candidates = self._next(count)[0]
        prompts = [self._prompt(candidate) for candidate in candidates]
        self._tokenized |= {one.position: prompt for one, prompt in zip(candidates, prompts, strict=True)}
        return prompts

    def take(self, count: int) -> list[Prompt]:
        """Return the next prompts of this rank and advance the position; all ranks must take the same number.

        Raises:
            ValueError: `choose` returned a number of prompts that does not divide among the ranks.
        """
        candidates, end, skipped = self._next(count)
        taken = [self._prompt(candidate) for candidate in candidates]
        for candidate in candidates:
            self._tokenized.pop(candidate.position, None)
        self.position = end
        self.skipped += skipped
        return taken

    def _next(self, count: int) -> tuple[Sequence[Candidate], int, int]:
        """Return the next candidates of this rank, the position after them, and how many were skipped."""
        self.begin_at(0)
        assert self.position is not None
        walk = _Walk(self.order, self.position, lambda index: first_index_of(self._dataset, index))
        chosen = walk(count * self._ranks) if self._choose is None else self._choose(count * self._ranks, walk)
        if count and (not chosen or len(chosen) % self._ranks):
            raise ValueError(
                f"the sampling schemes chose {len(chosen)} prompts for {self._ranks} data-parallel ranks; return a "
                "positive multiple of the number of ranks."
            )
        skipped = walk.position - self.position - len(chosen)
        return chosen[self._rank :: self._ranks], walk.position, skipped

    def _prompt(self, candidate: Candidate) -> Prompt:
        index = candidate.index
        prompt = self._tokenized.get(candidate.position)
        if prompt is None:
            prompt = self._prompt_of(self._dataset[index], location_in("dataset", self._dataset, index))
        return replace(prompt, index=index, weight=candidate.weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position of `state_dict`."""
        self.position, self._tokenized = state["position"], {}


class _Walk:
    """The stage of candidates below all others: the order itself, from a position; repeated examples are one."""

    def __init__(self, order: PromptOrder, position: int, first: Callable[[int], int]) -> None:
        self._order, self.position, self._first = order, position, first

    def __call__(self, count: int) -> list[Candidate]:
        start, self.position = self.position, self.position + count
        indices = self._order.slice(start, self.position)
        return [Candidate(self._first(index), position) for position, index in enumerate(indices, start)]
