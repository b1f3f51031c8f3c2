"""Verdicts on completions of benchmark problems, in processes that can be killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, cast

from lightning_modules.data.sampler import Sampled
from lightning_modules.evaluation.records import GradedCompletion
from lightning_modules.prompts import Example
from lightning_modules.rewards import AnyReward, RewardPool, WeightedRewards
from lightning_modules.rewards.killable import killable


class Grader:
    """Grades completions of benchmark problems by a reward.

    Args:
        reward: reward, 1 for a right completion. A function runs in worker processes, and must be importable by its
            module and name; a `BatchReward` runs as it does in training. If the reward has a method `answer`, as
            `MathReward` has, its results are the answers for a majority vote.
        workers: number of worker processes, or of calls of an asynchronous function at a time.
        limit: time limit of a verdict in seconds.
    """

    def __init__(self, reward: AnyReward, workers: int, limit: float) -> None:
        self._rewards = WeightedRewards(killable(reward, workers, limit))
        self._answer = answer_reader(reward)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rewards.close()

    def __call__(
        self, sampled: Sampled, problems: range, examples: Sequence[Example], greedy: bool
    ) -> list[GradedCompletion]:
        """Return the graded completions of some problems.

        Args:
            sampled: completions, those of one problem next to each other.
            problems: indices of the problems.
            examples: examples of these problems.
            greedy: whether these are greedy completions.

        Raises:
            ValueError: a score is not in [0, 1].
        """
        samples = len(sampled.texts) // len(problems)
        repeated = [example for example in examples for _ in range(samples)]
        (verdicts,) = self._rewards.verdicts(sampled.texts, repeated)
        for verdict in verdicts:
            if verdict.value is not None and not 0 <= verdict.value <= 1:
                raise ValueError(
                    f"`reward` gave {verdict.value}; pass a reward from 0 to 1, which is 1 for a right completion."
                )
        lengths = sampled.completions.mask.sum(dim=-1).tolist()
        return [
            GradedCompletion(
                problem=problems[row // samples],
                greedy=greedy,
                completion=text,
                value=verdict.value,
                cause=verdict.cause,
                extracted=self._answer(text) if self._answer else None,
                length=lengths[row],
                truncated=not sampled.completions.finished[row],
            )
            for row, (text, verdict) in enumerate(zip(sampled.texts, verdicts, strict=True))
        ]


def answer_reader(reward: AnyReward) -> Callable[[str], str | None] | None:
    """Return the method of a reward that reads the answer of a completion, or None if it has none."""
    inner = reward.reward if isinstance(reward, RewardPool) else reward
    return cast(Callable[[str], str | None] | None, getattr(inner, "answer", None))
