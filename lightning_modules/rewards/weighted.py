"""Weighted sum of rewards."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.calls import SequentialReward, copied, place, verdict_of
from lightning_modules.rewards.concurrent import AsyncReward, ConcurrentReward, is_async
from lightning_modules.rewards.names import numbered
from lightning_modules.rewards.scores import Scores
from lightning_modules.rewards.verdict import Verdict

AnyReward = Reward | AsyncReward | BatchReward

# Terms that are equal on paper leave no more of their size than this, when one is subtracted from the other.
_CANCELED = 8 * torch.finfo(torch.double).eps


class WeightedRewards:
    """Weighted sum of named rewards.

    Args:
        reward: one reward or several: functions of a completion and its example, asynchronous ones, or instances of
            `BatchReward`.
        weights: weight of each reward in the sum; 1 for each when None.

    Attributes:
        names: name of each reward, in metrics.
        may_fail: for each reward, whether metrics count its failed verdicts by cause: not for a plain function, which
            is called in this process.

    Raises:
        TypeError: a reward is not callable.
        ValueError: there is no reward, or `weights` is not one finite number per reward.
    """

    def __init__(self, reward: AnyReward | Sequence[AnyReward], weights: Sequence[float] | None = None) -> None:
        given = list(reward) if isinstance(reward, Sequence) else [reward]
        if not given:
            raise ValueError("`reward` is empty; pass a function of a completion and its example, or several.")
        for function in given:
            if not callable(function):
                raise TypeError(
                    f"`reward` has {function!r}; pass a function of a completion and its example, or several."
                )
        self._rewards = [_batch_reward(function) for function in given]
        # Of a function that is called here and may return a failed verdict, the fraction and a warning are enough.
        self.may_fail = [not isinstance(function, SequentialReward) for function in self._rewards]
        self._warned: set[int] = set()
        self.weights = (1.0,) * len(self._rewards) if weights is None else tuple(float(weight) for weight in weights)
        if len(self.weights) != len(self._rewards) or not all(map(math.isfinite, self.weights)):
            raise ValueError(
                f"`reward_weights` is {weights}, but `reward` has {len(self._rewards)}; pass one finite number for "
                "each."
            )
        self.names = numbered([function.name for function in self._rewards])

    def scores(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Return every reward of every completion, given one example per completion.

        Each call of a reward gets copies of the examples, so a reward that changes one changes nothing else. The first
        failed verdict of a reward gives a warning.

        Raises:
            ValueError: a reward is not a finite number, or a reward returned another number of values.
            RuntimeError: a reward tried to end the process.
        """
        rows = list(zip(*self.verdicts(completions, examples), strict=True))
        values = [[0.0 if verdict.value is None else verdict.value for verdict in row] for row in rows]
        components = torch.tensor(values, dtype=torch.double).reshape(len(completions), len(self._rewards))
        causes = [[verdict.cause for verdict in row] for row in rows]
        return Scores(components, causes, trained=[weight != 0 for weight in self.weights])

    def verdicts(self, completions: Sequence[str], examples: Sequence[Example]) -> list[list[Verdict]]:
        """Return the verdicts of each reward on all completions; see `scores`."""
        return [self._verdicts(index, completions, examples) for index in range(len(self._rewards))]

    def total(self, components: Tensor) -> PerCompletion:
        """Return the weighted sum of `components`, 0 where only rounding errors are left; shape `batch`, float64."""
        terms = components.double() * torch.tensor(self.weights, dtype=torch.double)
        total = terms.sum(dim=-1)
        return torch.where(total.abs() <= _CANCELED * terms.abs().sum(dim=-1), 0, total)

    def close(self) -> None:
        """Release the processes and connections of all rewards."""
        for reward in self._rewards:
            reward.close()

    def _verdicts(self, index: int, completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
        if not completions:  # a rank without prompts in the last batch of an evaluation
            return []
        name = self.names[index]
        values = list(self._rewards[index](completions, copied(examples)))
        if len(values) != len(completions):
            raise ValueError(
                f"`reward` {name} gave {len(values)} values for {len(completions)} completions; return one for each, "
                "in order."
            )
        triples = zip(values, completions, examples, strict=True)
        verdicts = [verdict_of(value, name, completion, example) for value, completion, example in triples]
        for verdict, completion, example in zip(verdicts, completions, examples, strict=True):
            if verdict.value is None and index not in self._warned:
                self._warned.add(index)
                warnings.warn(
                    f"`reward` {name} failed {place(completion, example)}: {verdict.cause} {verdict.detail}. This "
                    "warning is given once; the metrics count failed verdicts by their cause.",
                    stacklevel=2,
                )
        return verdicts


def _batch_reward(reward: AnyReward) -> BatchReward:
    if isinstance(reward, BatchReward):
        return reward
    return ConcurrentReward(cast(AsyncReward, reward)) if is_async(reward) else SequentialReward(cast(Reward, reward))
