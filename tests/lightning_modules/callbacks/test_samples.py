"""Samples of held-out completions, as `samples.md` shows them."""

import torch

from lightning_modules.batch import Evaluation
from lightning_modules.callbacks.samples import samples_of, write_samples


def evaluation(rewards, single=None, **example):
    texts = ["so \\boxed{42}", "```python\nprint(41)\n```"]
    examples = [{"prompt": "17 + 25?", **example}] * 2
    lengths = torch.tensor([5, 9])
    return Evaluation("sampled", examples, texts, torch.tensor(rewards).double(), lengths, single or {})


def test_a_verdict_is_shown_with_what_it_compares(tmp_path):
    samples = samples_of(evaluation([1.0, 0.0], answer=42), 5)
    write_samples({"before": samples[1:], "after": samples[:1]}, tmp_path / "samples.md")
    assert (tmp_path / "samples.md").read_text().splitlines() == [
        *("# Sampled completions of held-out prompts", ""),
        *("## Before training", "", "**17 + 25?**", ""),
        *("````text", "```python", "print(41)", "```", "````", ""),
        *("- reference answer: 42", "- reward: 0 (wrong)", ""),
        *("## After training", "", "**17 + 25?**", "", "```text", "so \\boxed{42}", "```", ""),
        *("- reference answer: 42", "- reward: 1 (right)"),
    ]


def test_several_rewards_are_shown_by_name_and_only_those_of_0_or_1_as_verdicts():
    single = {"boxed_answer": torch.tensor([1.0, 0.0]), "brief": torch.tensor([0.25, 1 / 3])}
    (first, second) = samples_of(evaluation([1.05, 1.0], single), 2)
    assert first[2:] == ["reward: 1.05", "reward boxed_answer: 1 (right)", "reward brief: 0.25"]
    assert second[2:] == ["reward: 1", "reward boxed_answer: 0 (wrong)", "reward brief: 0.333333"]


def test_samples_of_older_checkpoints_have_no_notes(tmp_path):
    write_samples({"before": [["17 + 25?", "42"]]}, tmp_path / "samples.md")
    assert (tmp_path / "samples.md").read_text().endswith("**17 + 25?**\n\n```text\n42\n```\n")
