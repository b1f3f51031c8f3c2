"""Reward of a right final answer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from aggregate_po.extras import install_command
from lightning_modules.rewards.fields import field_of, text_of
from lightning_modules.rewards.mathematics.extraction import AnswerForm, final_answer
from lightning_modules.rewards.mathematics.grading import folded, same_answer, stated_number
from lightning_modules.rewards.mathematics.normalization import normalized

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example

_LONGEST = 1000  # characters; a longer answer counts as it is written
_ENDS_OF_SOLUTIONS: tuple[AnswerForm, ...] = ("boxed", "hashes")


class MathReward:
    r"""Reward of 1 for a final answer that equals the reference answer, and 0 otherwise.

    Answers are compared as text in one spelling, then as exact numbers, then by `math-verify`. Where the reference is
    a number, a number is asked for: `\boxed{17 + 1}` is wrong for 18. A reference that is a whole solution, as in the
    rows of GSM8K (`... #### 18`) and MATH (`... \boxed{18}.`), counts by its final answer.

    Args:
        answer_field: Name of the example's field that holds the reference answer or solution, a text or a number.
        answer_forms: Forms of a final answer to look for, in this order.
        evaluate: Whether an expression that evaluates to the reference number is right, too.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: an example has no such field, or neither a text nor a number in it.
    """

    def __init__(
        self,
        answer_field: str = "answer",
        answer_forms: Sequence[AnswerForm] = ("boxed", "answer_tags", "hashes"),
        evaluate: bool = False,
    ) -> None:
        # An answer that is no plain number would miss it, in the middle of a run.
        if find_spec("math_verify") is None:
            raise ImportError(
                f"MathReward needs math-verify, which is not installed; run {install_command('math')}, or use "
                "NumericAnswer, which compares plain numbers."
            )
        self.answer_field = answer_field
        self.answer_forms = tuple(answer_forms)
        self.evaluate = evaluate

    def __call__(self, completion: str, example: Example) -> float:
        """Return the reward of one completion."""
        answer = final_answer(completion, self.answer_forms)
        value = field_of(example, "answer_field", self.answer_field)
        reference = text_of(value, "answer_field", self.answer_field)
        reference = final_answer(reference, _ENDS_OF_SOLUTIONS) or reference
        return float(answer is not None and same_answer(answer, reference, self.evaluate))

    def answer(self, completion: str) -> str | None:
        """Return the final answer of a completion in one spelling, None without one; equal numbers are equal texts."""
        found = final_answer(completion, self.answer_forms)
        if found is None:
            return None
        text = normalized(found) if len(found) <= _LONGEST else found
        number = stated_number(text)
        return str(number) if number is not None else folded(text) or None
