"""Weighted sum of rewards."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward


class WeightedRewards:
    """Weighted sum of named rewards.

    Args:
        reward: one reward function or several, each called with a completion and its example.
        weights: weight of each reward in the sum; 1 for each when None.

    Raises:
        TypeError: a reward is not callable.
        ValueError: there is no reward, or `weights` is not one finite number per reward.
    """

    def __init__(self, reward: Reward | Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        self._rewards = list(reward) if isinstance(reward, Sequence) else [reward]
        if not self._rewards:
            raise ValueError("`reward` is empty; pass a function of a completion and its example, or several.")
        for function in self._rewards:
            if not callable(function):
                raise TypeError(
                    f"`reward` has {function!r}; pass a function of a completion and its example, or several."
                )
        self.weights = (1.0,) * len(self._rewards) if weights is None else tuple(float(weight) for weight in weights)
        if len(self.weights) != len(self._rewards) or not all(map(math.isfinite, self.weights)):
            raise ValueError(
                f"`reward_weights` is {weights}, but `reward` has {len(self._rewards)}; pass one finite number for "
                "each."
            )
        names = [_name(function) for function in self._rewards]
        # Equal names are numbered, since metrics are logged by name.
        self.names = [
            name if names.count(name) == 1 else f"{name}_{names[: index + 1].count(name)}"
            for index, name in enumerate(names)
        ]

    def components(self, completions: Sequence[str], examples: Sequence[Example]) -> Tensor:
        """Return every reward of every completion, given one example per completion; shape `batch component`.

        Raises:
            ValueError: a reward is not a finite number.
        """
        pairs = list(zip(completions, examples, strict=True))
        rows = [[self._value(index, *pair) for index in range(len(self._rewards))] for pair in pairs]
        return torch.tensor(rows).reshape(len(pairs), len(self._rewards))

    def total(self, components: Tensor) -> PerCompletion:
        """Return the weighted sum of `components`; shape `batch`."""
        return (components.double() @ torch.tensor(self.weights, dtype=torch.double)).to(components.dtype)

    def _value(self, index: int, completion: str, example: Example) -> float:
        label = "`reward`" if len(self._rewards) == 1 else f"`reward` {self.names[index]}"
        try:
            value = self._rewards[index](completion, example)
        except Exception as error:
            error.add_note(f"raised by {label} for the completion {completion!r} of {dict(example)!r}")
            raise
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{label} gave {value!r} for {completion!r}; it must return a finite number.")
        return float(value)


def _name(reward: Reward) -> str:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)
