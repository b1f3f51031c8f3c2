"""Sampled completions of held-out prompts, with what they are compared with and how they are scored."""

from __future__ import annotations

from pathlib import Path

from lightning_modules.batch import Evaluation
from lightning_modules.prompts.base import shown
from lightning_modules.rewards import Cause

Sample = list[str]  # prompt, completion and notes, all of which a checkpoint holds


def samples_of(evaluation: Evaluation, count: int) -> list[Sample]:
    """Return the first completions of an evaluation, with the reference answer, the rewards and the verdict."""
    return [_sample(evaluation, row) for row in range(min(count, len(evaluation.completions)))]


def write_samples(samples: dict[str, list[Sample]], path: Path) -> None:
    """Write samples as Markdown, one section for each stage of the run, such as "before"."""
    lines = ["# Sampled completions of held-out prompts", ""]
    for title, completions in samples.items():
        lines += [f"## {title.capitalize()} training", ""]
        for prompt, completion, *notes in completions:
            fence = "```"
            while fence in completion:  # a longer one, so that the completion cannot end it
                fence += "`"
            lines += [f"**{prompt}**", "", f"{fence}text", completion, fence, ""]
            lines += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    path.write_text("\n".join(lines), encoding="utf-8")


def _sample(evaluation: Evaluation, row: int) -> Sample:
    example, reward = evaluation.examples[row], float(evaluation.rewards[row])
    single = {name: float(values[row]) for name, values in evaluation.single_rewards.items()}
    causes = evaluation.causes[row] if evaluation.causes else [None] * max(len(single), 1)
    # The total of several rewards is no verdict, but one of them may be.
    scored = zip(single.items(), causes, strict=True) if single else ()
    rewards = [f"reward {name}: {_scored(value, cause)}" for (name, value), cause in scored]
    total = f"reward: {reward:.6g}" if single else f"reward: {_scored(reward, causes[0])}"
    answer = [f"reference answer: {example['answer']}"] if example.get("answer") is not None else []
    return [shown(example["prompt"]), evaluation.completions[row], *answer, total, *rewards]


def _scored(value: float, cause: Cause | None) -> str:
    if cause is not None:
        return f"{value:.6g} (the verdict failed: {cause})"
    verdict = {1.0: " (right)", 0.0: " (wrong)"}.get(value, "")
    return f"{value:.6g}{verdict}"
