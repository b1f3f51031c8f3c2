"""The loop for newcomers: it learns with both objectives, shows what it says it shows, and needs the core alone."""

import ast
import re
from pathlib import Path

import pytest
import torch

from experiments import minimal_loop
from experiments.minimal_loop import GROUP_SIZE, PROMPTS, Learner, main, reward

SOURCE = Path(minimal_loop.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run():
    """Rewards of a short run with a larger step, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(words)))
        return main(steps=16, learning_rate=1e-3), "\n".join(lines).splitlines()


def test_both_objectives_learn(run):
    rewards, _ = run
    for name in ("GRPO", "GMPO"):
        assert rewards[name][0] < 0.1
        assert sum(rewards[name][-3:]) / 3 > 0.25


def test_it_does_not_learn_without_advantages(monkeypatch):
    """The control: rewards of other completions teach nothing."""

    def permuted(rewards):
        generator = torch.Generator().manual_seed(0)
        groups = rewards.rewards.reshape(-1, GROUP_SIZE)
        order = torch.rand(groups.shape, generator=generator).argsort(dim=-1)
        return advantages(minimal_loop.GroupedRewards(groups.gather(-1, order).flatten(), GROUP_SIZE))

    advantages = minimal_loop.GroupNormalized()
    monkeypatch.setattr(minimal_loop, "GroupNormalized", lambda: permuted)
    rewards = main(steps=12, learning_rate=1e-3)
    assert max(rewards["GRPO"] + rewards["GMPO"]) < 0.12


def test_both_begin_with_the_same_rollout(run):
    rewards, lines = run
    assert rewards["GRPO"][0] == rewards["GMPO"][0]
    numbers = [re.findall(r"\d+\.\d+", line) for line in lines[1:17]]
    assert all(len(found) == 8 for found in numbers)
    assert numbers[0][0] == numbers[0][4]


def test_the_last_lines_show_how_the_gradient_is_shared(run):
    """GRPO weights a token by its ratio, unless it is clipped; under GMPO all that are not clipped have one weight."""
    *_, ratios, grpo, gmpo = (line.split() for line in run[1])
    assert [ratios[0], grpo[0], gmpo[0]] == ["ratio", "GRPO", "GMPO"]
    for ratio, arithmetic, geometric in zip(ratios[1:], grpo[1:], gmpo[1:], strict=True):
        assert float(arithmetic) == (0 if float(ratio) > 1.2 else float(ratio))
        assert float(geometric) == 0 or float(ratio) < 1.5
    assert len(set(gmpo[1:]) - {"0.00"}) == 1
    assert "0.00" in grpo[1:]


def test_log_probs_are_those_of_the_sampler():
    """The masks, the positions and the shift by one agree with what `generate` has done."""
    learner = Learner(minimal_loop.gmpo(), 1e-3, seed=0)
    sequences, attention_mask, response_mask, rewards = learner.rollout(seed=0)
    assert sequences.shape[0] == len(rewards) == len(PROMPTS) * GROUP_SIZE
    time = response_mask.shape[1]
    found = learner.log_probs(sequences, attention_mask, time)
    for row in range(0, 160, 40):
        length = int(response_mask[row].sum())
        ids = sequences[row, : sequences.shape[1] - time + length]
        logits = learner.model(ids.unsqueeze(0)).logits[0].log_softmax(dim=-1)
        expected = logits[-length - 1 : -1].gather(-1, ids[-length:].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(found[row, :length], expected)
        ends = (ids[-length:] == learner.tokenizer.eos_token_id).nonzero().flatten().tolist()
        assert ends in ([], [length - 1])


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("7777", 1.0), ("7", 0.25), ("77777777", 0.5), ("7171", 0.5), ("", 0.0), ("1777", 0.75)],
)
def test_reward(completion, expected):
    assert reward("7:", completion) == expected


def test_it_needs_the_core_alone():
    roots = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        )
    }
    assert roots <= {"aggregate_po", "argparse", "tokenizers", "torch", "transformers"}
