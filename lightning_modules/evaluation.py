"""Held-out prompts: completed by the policy as it is, and scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example, derived_seed

if TYPE_CHECKING:
    from lightning_modules.rollout_data import RolloutDataModule


@dataclass(frozen=True)
class Evaluation:
    """Completions of held-out prompts with their rewards.

    Args:
        name: how they were drawn, "sampled" or "greedy".
        examples: the prompts with their fields.
        completions: one text for each.
        rewards: shape `batch`.
        lengths: tokens, the stop token included; shape `batch`.
    """

    name: str
    examples: list[Example]
    completions: list[str]
    rewards: PerCompletion
    lengths: PerCompletion


class EvaluationLoader:
    """Held-out prompts, completed and scored as they are asked for."""

    _prompts_per_batch = 256

    def __init__(self, data: RolloutDataModule, name: str, temperature: float) -> None:
        assert data.validation is not None
        self._data, self._examples = data, data.validation
        self.name, self._temperature = name, temperature

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._prompts_per_batch)

    def __iter__(self) -> Iterator[Evaluation]:
        for start in range(0, len(self._examples), self._prompts_per_batch):
            stop = min(start + self._prompts_per_batch, len(self._examples))
            examples = [self._examples[index] for index in range(start, stop)]
            _, drawn, texts = self._data.complete(examples, self._temperature, seed=derived_seed(start))
            yield Evaluation(
                name=self.name,
                examples=examples,
                completions=texts,
                rewards=self._data.rewards_of(texts, examples),
                lengths=drawn.mask.sum(dim=-1),
            )
