"""Reward by the verifier of a task of reasoning-gym."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from lightning_modules.rewards.mathematics.extraction import AnswerForm, final_answer

if TYPE_CHECKING:  # a worker of a pool loads no torch for it
    from lightning_modules.prompts import Example


class ReasoningGymReward:
    """Reward of 1 for a final answer that the task's verifier scores 1, and 0 otherwise.

    The verifiers give parts of a point to answers of the right length or form; those count as wrong here. So does an
    answer on which a verifier fails with an exception.

    Args:
        answer_forms: Forms of a final answer to look for, in this order.

    Raises:
        KeyError: an example is not one of `ReasoningGym`.
    """

    def __init__(self, answer_forms: Sequence[AnswerForm] = ("answer_tags", "boxed")) -> None:
        self.answer_forms = tuple(answer_forms)

    def __call__(self, completion: str, example: Example) -> float:
        """Return the reward of one completion."""
        entry = {name: example[name] for name in ("question", "answer", "metadata")}
        verifier = _verifier(entry["metadata"]["source_dataset"])
        answer = final_answer(completion, self.answer_forms)
        if answer is None:
            return 0.0
        try:
            return float(verifier(answer.strip(), entry) == 1)
        except Exception:  # what verifiers raise on nonsense is as varied as they are
            return 0.0


@cache
def _verifier(task: str) -> Callable[[str, dict[str, Any]], float]:
    """Return the verifier of a task, once per process: some tasks read their data files each time it is made."""
    import reasoning_gym

    verifier: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(task)
    return verifier
