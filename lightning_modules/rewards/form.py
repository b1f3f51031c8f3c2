"""Reward of a completion that has the form that was asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example

_TAG = r"</?(?:think|answer)>"
_THINK_ANSWER = rf"\s*<think>(?:(?!{_TAG}).)*</think>\s*<answer>(?:(?!{_TAG}).)*</answer>\s*"


class FormatReward:
    """Reward of 1 for a completion that matches a regular expression from its first to its last character, else 0.

    The default asks for `<think>...</think><answer>...</answer>`, with each tag once and white space around them alone.
    Where the chat template opens `<think>` in the prompt, pass a pattern that begins after it. A point matches line
    breaks, too. A pattern with nested repetitions may need exponential time; run it in a `RewardPool`.

    Args:
        pattern: Regular expression of Python.

    Raises:
        ValueError: `pattern` is no regular expression.

    Example:
        >>> FormatReward()("<think>1 + 1 is 2.</think> <answer>2</answer>", {})
        1.0
    """

    def __init__(self, pattern: str = _THINK_ANSWER) -> None:
        try:
            self._compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"`pattern` is {pattern!r}, which is no regular expression: {error}; correct it."
            ) from None
        self.pattern = pattern

    def __call__(self, completion: str, example: Example) -> float:
        """Return the reward of one completion."""
        return float(self._compiled.fullmatch(completion) is not None)
