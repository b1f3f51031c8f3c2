"""The boxed answer."""

import pytest

from lightning_modules.rewards import boxed_answer


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        (r"7+5=12 \boxed{12}", "12", 1),
        (r"7+5=12 \boxed{12}", 12, 1),
        (r"\boxed{ 12 }", "12", 1),
        (r"\boxed{12}", " 12 ", 1),
        (r"\boxed{12} and more text", "12", 1),
        (r"\boxed{12}", "12.0", 1),
        (r"\boxed{1.20e1}", 12, 1),
        (r"\boxed{12.5}", "12", 0),
        (r"\boxed{13}", "12", 0),
        (r"\boxed{112}", "12", 0),
        (r"\boxed{12", "12", 0),
        (r"boxed{12}", "12", 0),
        (r"\boxed{}", "12", 0),
        ("12", "12", 0),
        ("", "12", 0),
    ],
)
def test_a_boxed_answer_counts_where_it_is_the_same_text_or_number(completion, answer, reward):
    assert boxed_answer(completion, {"prompt": "7 + 5", "answer": answer}) == reward


def test_the_last_box_counts():
    example = {"prompt": "7 + 5", "answer": "12"}
    assert boxed_answer(r"\boxed{11} no, \boxed{12}", example) == 1
    assert boxed_answer(r"\boxed{12} no, \boxed{11}", example) == 0


@pytest.mark.parametrize("answer", [r"\frac{1}{2}", r"\left\{1, 2\right\}", r"x^{2^{3}}", r"\text{(C)}"])
def test_a_box_may_hold_braces(answer):
    example = {"prompt": "?", "answer": answer}
    assert boxed_answer(rf"thus \boxed{{{answer}}}.", example) == 1
    assert boxed_answer(rf"thus \boxed{{{answer}+1}}.", example) == 0
    assert boxed_answer(rf"\boxed{{{answer}}}, or \boxed{{\frac{{7}}{{8}}}}.", example) == 0


def test_the_reward_is_a_float():
    assert type(boxed_answer(r"\boxed{1}", {"answer": 1})) is float
    assert type(boxed_answer("", {"answer": 1})) is float


def test_an_example_without_answer_is_an_error():
    with pytest.raises(KeyError, match="answer"):
        boxed_answer(r"\boxed{12}", {"prompt": "7 + 5"})
