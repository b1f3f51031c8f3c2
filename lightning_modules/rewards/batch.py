"""Rewards that score several completions in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning_modules.prompts import Example
from lightning_modules.rewards.verdict import Verdict


class BatchReward(ABC):
    """Scores all completions of a rollout in one call, such as a reward model, or a pool of processes.

    Subclass requirements:

    - Implement `__call__`. It returns one finite number for each completion, in order, or a `Verdict` without a value
      where the reward failed. The examples are copies.
    - Be deterministic and keep no state, so that a resumed run repeats the same rewards. Each data-parallel rank scores
      its own completions.
    - Override `name` if the class does not say what is rewarded, and `close` if there is something to release.
    """

    @abstractmethod
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> Sequence[float | Verdict]:
        """Return the reward of each completion.

        Args:
            completions: texts, without the stop token that ended them.
            examples: example that each completion answers.
        """

    @property
    def name(self) -> str:
        """Name in metrics: `rewards/NAME/mean`; the name of the class by default."""
        return type(self).__name__

    def close(self) -> None:  # noqa: B027, most rewards hold nothing
        """Release processes and connections; a later call may open them again."""
