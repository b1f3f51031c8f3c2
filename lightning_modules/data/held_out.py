"""Held-out sets of prompts, each with its own sampling."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from lightning import Trainer

from lightning_modules.data.evaluation import EvaluationLoader, EvaluationName
from lightning_modules.data.sampler import Sampler
from lightning_modules.prompts import Example, Prompt, PromptSource
from lightning_modules.prompts.sources import examples_of
from lightning_modules.rewards import WeightedRewards
from lightning_modules.validation import require_at_least

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out prompts of one name, with the way in which their completions are sampled.

    Args:
        dataset: Held-out prompts, in the same forms as `data.dataset`.
        samples: Number of sampled completions of each prompt; their mean reward is avg@k. One is greedy, besides.
        temperature: Sampling temperature; that of the training when None.
        top_p: Probability of the nucleus to sample tokens from; 1.0 for all tokens.

    Raises:
        ValueError: a number is out of its range.
    """

    dataset: PromptSource
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(
                f"`temperature` is {self.temperature}; pass a positive number. Greedy completions are an evaluation of "
                "their own, `data.evaluations`."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}; pass a probability above 0, and 1.0 for all tokens.")

    @property
    def examples(self) -> Sequence[Example]:
        """The held-out examples, of a set whose data set was read by `held_out_sets`."""
        return cast(Sequence[Example], self.dataset)

    def loader(
        self,
        name: str,
        prompts: Sequence[Prompt],
        evaluation: EvaluationName,
        sampler: Sampler,
        rewards: WeightedRewards,
        temperature: float,
        trainer: Trainer,
    ) -> EvaluationLoader:
        """Return the data loader of an evaluation of this set.

        Args:
            name: name of the set, empty without one.
            prompts: tokenized prompts of the set.
            evaluation: whether completions are sampled or greedy.
            sampler: generates the completions.
            rewards: scores the completions.
            temperature: sampling temperature of the training.
            trainer: trainer, for its data-parallel ranks.
        """
        parts = evaluation, prompts, sampler, rewards
        if evaluation == "greedy":
            return EvaluationLoader(*parts, 0.0, trainer, name)
        own = temperature if self.temperature is None else self.temperature
        return EvaluationLoader(*parts, own, trainer, name, self.samples, self.top_p)


def held_out_sets(validation: PromptSource | Mapping[str, HeldOutSet]) -> dict[str, HeldOutSet]:
    """Return the held-out sets by name, with the examples of their data sets; a single set has the name "".

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a name cannot be part of the name of a metric, or a set has no prompts.
    """
    if not isinstance(validation, Mapping):
        return {"": HeldOutSet(cast(PromptSource, examples_of("validation", validation)))}
    sets = {}
    for name, held_out in validation.items():
        if not _NAME.fullmatch(name) or name == "rewards":  # single rewards are `val/rewards/...`
            raise ValueError(
                f"`validation` has the name {name!r}; pass letters, digits, dots, hyphens and underscores, and not "
                "'rewards', since it is part of the names of metrics."
            )
        sets[name] = replace(held_out, dataset=cast(PromptSource, examples_of(f"validation.{name}", held_out.dataset)))
    if not sets:
        raise ValueError("`validation` is {}; pass at least one held-out set, or None.")
    return sets


def held_out_prompts(
    sets: Mapping[str, HeldOutSet], dataset: Sequence[Example], sampler: Sampler
) -> dict[str, list[Prompt]]:
    """Return the tokenized prompts of held-out sets, after positions are fixed for them and for the training prompts.

    Raises:
        ValueError: a prompt is refused.
    """
    arguments = {name: f"validation.{name}" if name else "validation" for name in sets}
    sampler.fix_lengths(dataset=dataset, **{arguments[name]: one.examples for name, one in sets.items()})
    return {name: list(sampler.tokenizer.prompts(arguments[name], one.examples)) for name, one in sets.items()}
