"""Warm start of a model that is also asked questions together with a draft of the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

from typing_extensions import override

from lightning_modules.addition.warm_start import AdditionWarmStart


@dataclass(frozen=True)
class DraftedWarmStart(AdditionWarmStart):
    """The model of `AdditionWarmStart`, warm-started on questions that follow a draft of the answer, too.

    `DraftRefinement` with the template `{draft} {question}` asks such questions, and a model of this size understands
    only prompts of a form that it has been trained on. The drafts are as weak as the answers.

    Args:
        draft_share: Fraction of the examples whose prompt has a draft.

    Raises:
        ValueError: a fraction is not between 0 and 1, or a count is not positive.
    """

    draft_share: float = 0.5

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.draft_share <= 1:
            raise ValueError(f"`draft_share` is {self.draft_share}; pass a fraction, from 0 to 1.")

    @override
    def _prompt(self, first: int, second: int, rng: random.Random) -> str:
        prompt = super()._prompt(first, second, rng)
        return f"{self._answer(first, second, rng)} {prompt}" if rng.random() < self.draft_share else prompt
