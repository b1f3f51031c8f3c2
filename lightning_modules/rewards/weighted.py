"""Weighted sum of rewards."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.values import finite_number, shortened

# Terms that are equal on paper leave no more of their size than this, when one is subtracted from the other.
_CANCELED = 8 * torch.finfo(torch.double).eps


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
        """Return every reward of every completion, given one example per completion; shape `batch component`, float64.

        Each call of a reward gets a copy of the example, so a reward that changes it changes nothing else.

        Raises:
            ValueError: a reward is not a finite number.
            RuntimeError: a reward tried to end the process.
        """
        pairs = list(zip(completions, examples, strict=True))
        rows = [[self._value(index, *pair) for index in range(len(self._rewards))] for pair in pairs]
        return torch.tensor(rows, dtype=torch.double).reshape(len(pairs), len(self._rewards))

    def total(self, components: Tensor) -> PerCompletion:
        """Return the weighted sum of `components`, 0 where only rounding errors are left; shape `batch`, float64."""
        terms = components.double() * torch.tensor(self.weights, dtype=torch.double)
        total = terms.sum(dim=-1)
        return torch.where(total.abs() <= _CANCELED * terms.abs().sum(dim=-1), 0, total)

    def _value(self, index: int, completion: str, example: Example) -> float:
        label = "`reward`" if len(self._rewards) == 1 else f"`reward` {self.names[index]}"
        place = f"for the completion {shortened(completion)} of {shortened(dict(example))}"
        try:
            value = self._rewards[index](completion, copy.deepcopy(dict(example)))
        except Exception as error:
            error.add_note(f"raised by {label} {place}")
            raise
        except KeyboardInterrupt:
            # An interrupt of the user arrives here too, and ends the run either way.
            warnings.warn(f"{label} was interrupted {place}.", stacklevel=2)
            raise
        except (SystemExit, GeneratorExit) as error:
            # To Lightning and to the shell, `sys.exit()` would be a run that succeeded.
            raise RuntimeError(
                f"{label} raised {error!r} {place}; return a number, and raise an exception where there is none."
            ) from error
        try:
            return finite_number(value)
        except ValueError as error:
            raise ValueError(f"{label} gave {error}, {place}; return one finite number.") from None


def _name(reward: Reward) -> str:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)
