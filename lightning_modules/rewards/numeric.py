"""Reward of a number that is near the reference answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from lightning_modules.rewards.fields import field_of
from lightning_modules.rewards.mathematics.extraction import AnswerForm, final_answer
from lightning_modules.rewards.mathematics.normalization import normalized
from lightning_modules.rewards.mathematics.numbers import plain_number

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example


class NumericAnswer:
    r"""Reward of 1 for a final answer that is a number within a tolerance of the reference answer, and 0 otherwise.

    An answer $x$ is right for the reference $y$ if $|x - y| \le a + r |y|$, computed exactly. It must be a plain
    number, such as `1,234.5`, `1/2` or `1.8e1`; units, a dollar sign and a full stop are ignored.

    Args:
        answer_field: Name of the example's field with the reference answer, a number or a text.
        relative: Relative tolerance $r$.
        absolute: Absolute tolerance $a$.
        answer_forms: Forms of a final answer to look for, in this order.

    Raises:
        ValueError: a tolerance is negative or not finite; when called, if the example has no such field, or no number
            in it.

    Example:
        >>> NumericAnswer(relative=0.01)(r"about \boxed{3.14}", {"answer": 3.14159})
        1.0
    """

    def __init__(
        self,
        answer_field: str = "answer",
        relative: float = 1e-6,
        absolute: float = 0.0,
        answer_forms: Sequence[AnswerForm] = ("boxed", "answer_tags", "hashes"),
    ) -> None:
        for name, value in (("relative", relative), ("absolute", absolute)):
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` is {value}; pass 0 or a positive number.")
        self.answer_field = answer_field
        self.relative = relative
        self.absolute = absolute
        self.answer_forms = tuple(answer_forms)

    def __call__(self, completion: str, example: Example) -> float:
        """Return the reward of one completion."""
        reference = field_of(example, "answer_field", self.answer_field)
        expected = _number(str(reference))
        if expected is None:
            raise ValueError(
                f"`{self.answer_field}` of the example is {reference!r}, which is no number; use "
                "another reward for such examples, such as MathReward."
            )
        answer = final_answer(completion, self.answer_forms)
        found = None if answer is None else _number(answer)
        if found is None:
            return 0.0
        return float(abs(found - expected) <= Fraction(self.absolute) + Fraction(self.relative) * abs(expected))


def _number(text: str) -> Fraction | None:
    return plain_number(normalized(text))
