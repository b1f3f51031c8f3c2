"""Calls of rewards: which completion an error belongs to, and what a reward may return."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from lightning_modules.prompts import Example
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.names import reward_name
from lightning_modules.rewards.values import finite_number, shortened
from lightning_modules.rewards.verdict import Verdict


class SequentialReward(BatchReward):
    """Calls a reward function for one completion after another, in this process.

    Args:
        reward: function of a completion and its example.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    @override
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> Sequence[float | Verdict]:
        return [self._value(*pair) for pair in zip(completions, examples, strict=True)]

    @property
    @override
    def name(self) -> str:
        return reward_name(self.reward)

    def _value(self, completion: str, example: Example) -> float:
        with located(self.name, completion, example):
            return self.reward(completion, example)


def copied(examples: Sequence[Example]) -> list[Example]:
    """Return a copy of each example, so that a reward that changes it changes nothing else."""
    return [copy.deepcopy(dict(example)) for example in examples]


def verdict_of(value: Any, name: str, completion: str, example: Example) -> Verdict:
    """Return what a reward returned as a verdict.

    Raises:
        ValueError: it is neither a verdict nor one finite number.
    """
    if isinstance(value, Verdict) and value.value is None and value.cause is not None:
        return value
    try:
        return Verdict(finite_number(value.value if isinstance(value, Verdict) else value))
    except ValueError as error:
        raise ValueError(
            f"`reward` {name} gave {error}, {place(completion, example)}; return one finite number."
        ) from None


@contextmanager
def located(name: str, completion: str, example: Example) -> Iterator[None]:
    """Add to an error which reward raised it for which completion.

    Raises:
        RuntimeError: the reward tried to end the process.
    """
    where = place(completion, example)
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by `reward` {name} {where}")
        raise
    except KeyboardInterrupt:
        # An interrupt of the user arrives here too, and ends the run either way.
        warnings.warn(f"`reward` {name} was interrupted {where}.", stacklevel=2)
        raise
    except (SystemExit, GeneratorExit) as error:
        # To Lightning and to the shell, `sys.exit()` would be a run that succeeded.
        raise RuntimeError(
            f"`reward` {name} raised {error!r} {where}; return a number, and raise an exception where there is none."
        ) from error


def place(completion: str, example: Example) -> str:
    """Return which completion is meant, for a message."""
    return f"for the completion {shortened(completion)} of {shortened(dict(example))}"
