"""The final answer of a completion."""

import time

import pytest

from lightning_modules.rewards.mathematics import final_answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{12}", "12"),
        (r"\boxed{3}, wait, \boxed{4}", "4"),
        (r"\boxed{4} and then \boxed{5", "4"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{x \mid x > 0\}}", r"\{x \mid x > 0\}"),
        (r"\boxed{1 \\ 2}", r"1 \\ 2"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        ("<answer>12</answer>", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>the <answer>2</answer>", "2"),
        (r"<answer>1</answer> \boxed{2}", "2"),
        ("thus\n#### 1,200\nend", "1,200"),
        ("#### 1\n#### 2", "2"),
        ("I guess 4 or 5", None),
        ("", None),
        (r"\boxed", None),
    ],
)
def test_the_last_closed_form_counts(completion, answer):
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("first 4, then 5.", "5"),
        ("it is -1,234.5 dollars", "-1,234.5"),
        ("one half, 1/2", "1/2"),
        ("none", None),
        ("it is \N{MINUS SIGN}5.", "-5"),
        ("x=-5", "-5"),
        ("($-5$)", "-5"),
        ("1.8e1", "1.8e1"),
        ("10^6 tokens", "10^6"),
        (r"1.8 \times 10^{-3} m", r"1.8 \times 10^{-3}"),
        ("from 10-12", "12"),
        ("it is 2-3", "3"),
        ("COVID-19", "19"),
        ("f(2)-3", "3"),
        ("it is .5", ".5"),
        ("3.", "3"),
    ],
)
def test_a_last_number_is_taken_where_it_is_asked_for(completion, answer):
    assert final_answer(completion, ["last_number"]) == answer


def test_the_order_of_the_forms_decides():
    text = r"\boxed{1} <answer>2</answer>"
    assert final_answer(text, ["answer_tags", "boxed"]) == "2"
    assert final_answer("<answer>2</answer>", ["boxed"]) is None


@pytest.mark.parametrize("text", [r"\boxed{", "<answer>", "#### ", "{", "1,", r"\boxed{}", "\\", "<answer>x</answer>"])
def test_degenerate_completions_are_read_in_linear_time(text):
    def seconds(repeats):
        started = time.process_time()
        final_answer(text * repeats, ["boxed", "answer_tags", "hashes", "last_number"])
        return time.process_time() - started

    seconds(100)
    # Sixteen times the text: quadratic time would be 256 times as much.
    assert seconds(32_000) < 64 * max(min(seconds(2_000) for _ in range(3)), 1e-3)
