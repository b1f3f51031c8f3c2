"""Held-out prompts: completed by the policy as it is, and scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example
from lightning_modules.seeding import derived_seed

if TYPE_CHECKING:
    from lightning_modules.data.module import RolloutDataModule


@dataclass(frozen=True)
class Evaluation:
    """Completions of held-out prompts with their rewards.

    Args:
        name: how they were drawn, "sampled" or "greedy".
        examples: the prompts with their fields.
        completions: one text for each.
        rewards: shape `batch`.
        lengths: tokens, the stop token included; shape `batch`.
        single_rewards: those of which `rewards` is the weighted sum, by name; none where there is only one.
    """

    name: str
    examples: list[Example]
    completions: list[str]
    rewards: PerCompletion
    lengths: PerCompletion
    single_rewards: Mapping[str, PerCompletion] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, PerCompletion]:
        """What is measured of each completion, by the name under which its mean is logged."""
        single = {f"rewards/{reward}_{self.name}": values for reward, values in self.single_rewards.items()}
        return {f"pass@1_{self.name}": self.rewards, **single, f"mean_length_{self.name}": self.lengths.float()}


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
            rewards = self._data.rewards
            components = rewards.components(texts, examples)
            single = dict(zip(rewards.names, components.unbind(dim=-1), strict=True))
            yield Evaluation(
                name=self.name,
                examples=examples,
                completions=texts,
                rewards=rewards.total(components),
                lengths=drawn.mask.sum(dim=-1),
                single_rewards=single if len(single) > 1 else {},
            )
