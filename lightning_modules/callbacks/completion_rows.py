"""Completions of rollouts as rows of a table: what a row holds, its files, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.data.rollout import Rollout
from lightning_modules.parquet_files import read_rows, step_files
from lightning_modules.prompts.base import shown

Row = dict[str, Any]

FOLDER = "completions"


def rows_of_rollout(
    rollout: Rollout, step: int, reward_names: Sequence[str], rank: int = 0, ranks: int = 1
) -> list[Row]:
    """Return a row for each completion of this rank.

    Args:
        rollout: rollout of this rank.
        step: first optimizer step that trains on it.
        reward_names: names of the single rewards.
        rank: data-parallel rank.
        ranks: number of data-parallel ranks, which take prompts in turn.
    """
    groups, size = rollout.groups, rollout.groups.group_size
    lengths, finished = groups.completions.mask.sum(dim=-1).tolist(), groups.completions.finished.tolist()
    rows = []
    for number, text in enumerate(groups.texts):
        prompt = groups.prompts[number // size]
        about = {name: value for name, value in prompt.example.items() if name != "prompt"}
        single = zip(reward_names, groups.components[number].tolist(), groups.causes[number], strict=True)
        parts = {f"rewards/{name}": (None if cause else value, cause) for name, value, cause in single}
        row = {
            "step": step,
            "group": number // size * ranks + rank,
            "sample": number % size,
            "prompt": shown(prompt.example["prompt"]),
            "example": json.dumps(about, default=repr),
            "completion": text,
            "reward": float(groups.rewards[number]) if groups.scored[number] else None,
            **{name: value for name, (value, _) in parts.items()},
            **{f"{name}/cause": cause for name, (_, cause) in parts.items()},
            "advantage": _advantage(rollout.advantages[number], lengths[number]),
            "length": lengths[number],
            "truncated": not finished[number],
            "prompt_length": len(prompt.token_ids),
            "policy_step": groups.policy_steps[number // size],
        }
        rows.append(row)
    return rows


def _advantage(values: Tensor, length: int) -> float | list[float]:
    """Return the advantage of a completion, or those of its tokens."""
    return [float(value) for value in values[:length]] if values.ndim else float(values)


def completion_files(run: Path) -> dict[int, Path]:
    """Return the files of a run, by their first optimizer step and in its order."""
    return step_files(run / FOLDER)


def read_completions(
    run: str | Path,
    step: int | tuple[int, int] | None = None,
    prompt: str | None = None,
    reward: float | tuple[float, float] | None = None,
) -> list[Row]:
    """Return completions that `CompletionsFile` has written, as one mapping per completion.

    A mapping has "step", "group" (the number of the prompt in its rollout), "sample", "prompt", "example" (the other
    fields, as JSON), "completion", "reward" (without a KL penalty, None without one), "rewards/NAME" and
    "rewards/NAME/cause" for each single reward (None and the cause if the verdict failed), "advantage" (a list of one
    per token where the estimator gives that), "length", "truncated", "prompt_length", and "policy_step", the optimizer
    step of the policy that sampled it.

    Args:
        run: run folder.
        step: optimizer step, whose rollout is returned, or first and last step; all when None.
        prompt: text that the prompt contains; all prompts when None.
        reward: reward of the completions, or lowest and highest reward; all when None.

    Raises:
        FileNotFoundError: the run has no completions.
        ValueError: a file is damaged.

    Example:
        `read_completions("runs/mine", step=50, reward=1.0)`
    """
    files = completion_files(Path(run))
    if not files:
        raise FileNotFoundError(
            f"`run` is {str(run)!r}, which has no files {FOLDER}/step-*.parquet; train with `--trainer.callbacks+="
            "lightning_modules.CompletionsFile`."
        )
    steps = (min(files), max(files)) if step is None else step if isinstance(step, tuple) else (step, step)
    # The rollout of a step is the last one that began with it or before.
    first = max((start for start in files if start <= steps[0]), default=steps[0])
    low, high = reward if isinstance(reward, tuple) else (reward, reward)
    return [
        row
        for start, path in files.items()
        if first <= start <= steps[1]
        for row in read_rows(path)
        if (prompt is None or prompt in row["prompt"])
        and (low is None or high is None or (row["reward"] is not None and low <= row["reward"] <= high))
    ]
