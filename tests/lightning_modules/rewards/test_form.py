"""Form of a completion, by a regular expression."""

import pytest

from lightning_modules.rewards import FormatReward

GOOD = "<think>a\nb</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (GOOD, 1.0),
        (f"\n{GOOD}\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        (f"{GOOD} done", 0.0),
        (f"well: {GOOD}", 0.0),
        (GOOD * 2, 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a <think>b</think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>4</answer></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_thoughts_come_before_the_answer(completion, reward):
    assert FormatReward()(completion, {}) == reward


def test_a_pattern_of_the_user():
    reward = FormatReward(r".*</think>.*\\boxed\{.+\}.*")
    assert reward("a\n</think>\n\\boxed{4}.", {}) == 1.0
    assert reward("\\boxed{4}", {}) == 0.0
    with pytest.raises(ValueError, match=r"^`pattern` is '\(', which is no regular expression: .*; correct it"):
        FormatReward("(")


def test_the_default_takes_linear_time():
    assert FormatReward()("<think>" * 100_000, {}) == 0.0
    assert FormatReward()("<think>" + "a" * 1_000_000, {}) == 0.0
