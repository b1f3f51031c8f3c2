"""Verdict of a reward on a completion, or the cause of its absence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cause = Literal["time", "memory", "exit", "exception", "value", "connection"]
"""Cause of a failed verdict.

- `time`: the reward reached its time limit and was killed;
- `memory`: the reward reached its memory limit;
- `exit`: the process ended, by a signal or by an exit;
- `exception`: the reward raised an exception;
- `value`: the reward returned something other than a finite number;
- `connection`: a server could not be reached, or did not answer.
"""


@dataclass(frozen=True)
class Verdict:
    """Verdict of a reward on one completion.

    Args:
        value: reward of the completion; None if the verdict failed.
        cause: cause of the failure; None if there is a value.
        detail: description of the failure, such as the exception.
    """

    value: float | None
    cause: Cause | None = None
    detail: str = ""
