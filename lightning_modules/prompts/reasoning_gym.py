"""Procedural reasoning problems from the tasks of reasoning-gym."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from aggregate_po.extras import install_command
from lightning_modules.prompts.base import StoredPrompts, numbered

_INSTRUCTION = "Write your final answer between <answer> and </answer>."


class ReasoningGym(StoredPrompts):
    """Problems of one task of reasoning-gym, made on the spot from a seed; nothing is downloaded.

    An example has the fields "prompt", "question", "answer" and "metadata". `ReasoningGymReward` scores completions by
    the verifier of the task.

    Args:
        task: Name of the task, such as chain_sum or knights_knaves.
        size: Number of problems.
        seed: Seed of the problems; pass another one for held-out problems.
        settings: Difficulty and other settings of the task, such as `{max_terms: 3}` for chain_sum.
        instruction: Text after each question; the default asks for the form that `ReasoningGymReward` reads.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
        ValueError: there is no such task, the task refuses its settings, or a number is out of its range.

    Reference: reasoning-gym, arXiv:2505.24760.
    """

    def __init__(
        self,
        task: str,
        size: int = 1000,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        instruction: str = _INSTRUCTION,
    ) -> None:
        if size < 1:
            raise ValueError(f"`size` is {size}; pass 1 or more.")
        self.task = task
        self.seed = seed
        ending = f"\n{instruction}" if instruction else ""
        entries = _problems(task, size, seed, dict(settings or {}))
        self._examples = [{"prompt": f"{entry['question']}{ending}", **entry} for entry in entries]

    @override
    def location(self, index: int) -> str:
        return f"{self.task} with seed {self.seed}, {numbered(index, len(self))}"


def _problems(task: str, size: int, seed: int, settings: dict[str, Any]) -> list[Mapping[str, Any]]:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ModuleNotFoundError(
            f"the task needs reasoning-gym, which is not installed; run {install_command('reasoning')}.",
            name=error.name,
        ) from None
    if task not in reasoning_gym.factory.DATASETS:
        raise ValueError(f"`task` is {task!r}; pass one of {', '.join(sorted(reasoning_gym.factory.DATASETS))}.")
    try:
        return list(reasoning_gym.create_dataset(task, size=size, seed=seed, **settings))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"`settings` is {settings}, which the task {task!r} refuses: {error}.") from error
