"""Verifiable rewards: functions of a completion and the example that it answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lightning_modules.prompts import Example

Reward = Callable[[str, Example], float]

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def boxed_answer(completion: str, example: Example) -> float:
    r"""1 if the last `\boxed{...}` of the completion holds `example["answer"]`, else 0.

    Raises:
        KeyError: the example has no answer.
    """
    expected: Any = example["answer"]
    boxes = _BOXED.findall(completion)
    return float(bool(boxes) and boxes[-1].strip() == str(expected).strip())
