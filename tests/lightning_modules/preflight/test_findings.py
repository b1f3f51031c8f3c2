"""The findings of trial rollouts that are written by hand."""

import pytest
import torch

from lightning_modules.preflight import TrialRollout
from lightning_modules.preflight.findings import Disagreement, Findings


def findings(rewards, finished=1.0, disagreement=None, failed=(), advantages=None):
    rewards = torch.tensor(rewards, dtype=torch.double)
    scored = torch.ones_like(rewards, dtype=torch.bool)
    for prompt, completion in failed:
        scored[prompt, completion] = False
    known = [row[kept].tolist() for row, kept in zip(rewards, scored, strict=True)]
    count = rewards.numel()
    signal = torch.tensor([len(set(row)) > 1 for row in known])
    return Findings.of(
        TrialRollout(
            rewards=rewards,
            scored=scored,
            have_signal=signal,
            have_advantage=signal if advantages is None else torch.tensor(advantages),
            lengths=torch.full_like(rewards, 10.0),
            finished=torch.full_like(rewards, finished).bool(),
            texts=["A" * 500] * count,
            examples=[{"prompt": "What?"}] * count,
            sampling_seconds=1.0,
            pass_seconds=0.1,
        ),
        disagreement,
    )


def test_figures():
    found = findings([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert (found.prompts, found.group_size) == (4, 4)
    assert found.pass_rate.value == found.reward == 7 / 16
    assert found.signal == 0.5
    assert found.truncated == 0
    text = "\n".join(found.lines())
    assert "pass rate:    0.438 (95 % interval" in text
    assert "with signal:  50.0%" in text
    assert "AAAA ... AAAA" in text
    (verdict,) = found.verdict()
    assert (
        verdict == "This run can learn: 50.0% of the groups have signal. These are only 4 groups; raise --completions."
    )


@pytest.mark.parametrize(
    ("rewards", "advantages", "verdict"),
    [
        (
            [[1, 1]] * 5 + [[0, 0]] * 5,
            [True] * 10,
            "This run can learn: 100.0% of the groups have an advantage, 0.0% have signal.",
        ),
        (
            [[1, 1]] * 5 + [[1, 0]] * 5,
            [True] * 10,
            "This run can learn: 100.0% of the groups have an advantage, 50.0% have signal.",
        ),
        (
            [[1, 1]] * 5 + [[1, 0]] * 5,
            [False] * 10,
            "This run would not learn: 50.0% of the groups have signal, but no",
        ),
    ],
)
def test_the_verdict_is_by_the_advantages_that_the_estimator_gives(rewards, advantages, verdict):
    """Under an estimator with another baseline than the group's mean, equal rewards have advantages."""
    assert findings(rewards, advantages=advantages).verdict()[0].startswith(verdict)


def test_failed_verdicts_are_counted_and_out_of_the_metrics():
    found = findings([[1, 0, 0, 0], [1, 1, 0, 0]], failed=[(0, 0), (1, 3)])
    assert found.failed == 2
    assert found.reward == 1 / 3
    assert found.pass_rate.value == pytest.approx((0 + 2 / 3) / 2)
    assert found.signal == 0.5
    text = "\n".join(found.lines())
    assert "failed:       2 verdicts" in text
    assert "verdict failed" in text
    assert "2 verdicts failed" in found.verdict()[1]


def test_a_group_with_one_verdict_says_nothing_about_the_pass_rate():
    found = findings([[1, 0], [1, 1]], failed=[(0, 0)])
    assert found.pass_rate.value == 1
    everything = findings([[1, 0]], failed=[(0, 0), (0, 1)])
    assert everything.pass_rate is None
    assert "would not learn" in everything.verdict()[0]


def test_rewards_other_than_0_and_1_have_no_pass_rate():
    found = findings([[0.5, 0.25], [0.5, 0.5]])
    assert found.pass_rate is None
    assert "mean reward:  0.438" in found.lines()[1]
    assert not any("expected" in line for line in found.lines())
    assert found.signal == 0.5


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([[0, 0], [0, 0]], "would not learn: none of 4 completions has a reward"),
        ([[1, 1], [0, 0]], "would not learn: the completions of each prompt all have the same reward"),
        ([[1, 1], [1, 1]], "would not learn: the completions of each prompt all have the same reward"),
        ([[0, 1]] + [[0, 0]] * 19, "can hardly learn: 5.0% of the groups"),
        ([[0, 1]] + [[0, 0]] * 9, "can learn: 10.0% of the groups have signal."),
    ],
)
def test_the_verdict_follows_the_signal(rewards, words):
    (sentence,) = findings(rewards).verdict()
    assert words in sentence


def test_truncation_and_graders_that_differ_are_part_of_the_verdict():
    assert "100% of the completions are truncated" in findings([[0, 1]], finished=0.0).verdict()[1]
    found = findings([[0, 1]], disagreement=Disagreement("other", 1, 2, ["0 and 1: 'A'"]))
    assert "The graders differ on 50.0%" in found.verdict()[1]
    assert "other gives another reward on 1 of 2 completions" in "\n".join(found.lines())
    agreeing = findings([[0, 1]], disagreement=Disagreement("other", 0, 2))
    assert len(agreeing.verdict()) == 1
