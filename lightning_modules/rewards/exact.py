"""Reward of an answer that is the reference answer, letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_modules.rewards.fields import field_of, text_of
from lightning_modules.rewards.mathematics.extraction import AnswerForm, final_answer

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example


class ExactMatch:
    """Reward of 1 for a final answer that is the text of the reference answer, and 0 otherwise.

    White space at the ends is ignored, and any other run of white space equals a blank.

    Args:
        answer_field: Name of the example's field with the reference answer, or with a list of right ones.
        answer_forms: Forms of a final answer to look for, in this order; the whole completion is the answer if empty.
        ignore_case: Whether upper and lower case are equal.

    Raises:
        ValueError: when called, if an example has no such field, or an answer that is neither a text nor a number.

    Example:
        >>> ExactMatch(ignore_case=True)("<answer> new  york</answer>", {"answer": "New York"})
        1.0
    """

    def __init__(
        self,
        answer_field: str = "answer",
        answer_forms: Sequence[AnswerForm] = ("answer_tags", "boxed"),
        ignore_case: bool = False,
    ) -> None:
        self.answer_field = answer_field
        self.answer_forms = tuple(answer_forms)
        self.ignore_case = ignore_case

    def __call__(self, completion: str, example: Example) -> float:
        """Return the reward of one completion."""
        answer = final_answer(completion, self.answer_forms) if self.answer_forms else completion
        expected = field_of(example, "answer_field", self.answer_field)
        right = expected if isinstance(expected, (list, tuple)) else [expected]
        texts = {self._text(text_of(value, "answer_field", self.answer_field)) for value in right}
        return float(answer is not None and self._text(answer) in texts)

    def _text(self, answer: str) -> str:
        text = " ".join(answer.split())
        return text.casefold() if self.ignore_case else text
