"""Exact match: what is equal, where the answer is read, and what the example holds."""

import pytest

from lightning_modules.rewards import ExactMatch, MathReward


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("<answer>Paris</answer>", "Paris", 1.0),
        ("<answer>\n New\t York </answer>", "New York", 1.0),
        ("<answer>paris</answer>", "Paris", 0.0),
        ("<answer>Paris</answer> <answer>Rome</answer>", "Paris", 0.0),
        (r"\boxed{12}", 12, 1.0),
        (r"\boxed{12.0}", 12, 0.0),
        ("Paris", "Paris", 0.0),
        ("<answer>Rome</answer>", ["Roma", "Rome"], 1.0),
        ("<answer></answer>", "", 1.0),
    ],
)
def test_equal_texts_are_right(completion, answer, reward):
    assert ExactMatch()(completion, {"answer": answer}) == reward


def test_options():
    assert ExactMatch("city", (), ignore_case=True)(" PARIS\n", {"city": "Paris"}) == 1.0
    with pytest.raises(ValueError, match=r"`answer_field` is .*which the example lacks; its fields are"):
        ExactMatch()("<answer>a</answer>", {})


@pytest.mark.parametrize("reward", [ExactMatch(), MathReward()])
@pytest.mark.parametrize("answer", [{"value": 12}, b"12", float("nan"), [["12"]]])
def test_answers_that_nothing_could_equal_are_refused(reward, answer):
    with pytest.raises(ValueError, match=r"^`answer_field` is 'answer', .* of type .*'answer\.0'"):
        reward(r"\boxed{12}", {"answer": answer})
