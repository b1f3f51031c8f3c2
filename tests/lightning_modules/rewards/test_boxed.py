"""The boxed answer."""

import math
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from lightning_modules.rewards import boxed_answer, last_boxed


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
    with pytest.raises(ValueError, match="no field 'answer'; its fields are"):
        boxed_answer(r"\boxed{12}", {"prompt": "7 + 5"})


@pytest.mark.parametrize(
    ("found", "answer", "reward"),
    [
        ("90071992547409931", "90071992547409930", 0),
        ("90071992547409931", 90071992547409930, 0),
        ("90071992547409930.0", 90071992547409930, 1),
        ("0.1000000000000000055", "0.1", 0),
        ("1e400", "2e400", 0),
        ("10e399", "1e400", 1),
        ("1e-400", "0", 0),
        ("-0.0", 0, 1),
        ("+7", "7", 1),
        (".5", "0.50", 1),
        ("5.", 5, 1),
        ("0.1", 0.1, 1),
        ("007", "7", 1),
        ("1_000", "1000", 0),
        ("1,000", "1000", 0),
        ("1,000", "1,000", 1),
        ("١٢", "12", 0),
        ("nan", "NaN", 0),
        ("inf", "Infinity", 0),
        ("inf", "1e999", 0),
        ("Infinity", "Infinity", 1),
        ("0x10", "16", 0),
        ("1/2", "0.5", 0),
        ("1/2", "1/2", 1),
        ("1/2", Fraction(1, 2), 1),
        ("0.10", Decimal("0.1"), 1),
        ("3", np.int64(3), 1),
        ("0.1", np.float32(0.1), 1),
        ("True", True, 1),
        ("1", True, 0),
        ("None", None, 0),
        ("null", None, 0),
        ("", None, 0),
        ("nan", math.nan, 0),
        ("inf", math.inf, 0),
    ],
)
def test_plain_numbers_are_compared_exactly_and_everything_else_as_text(found, answer, reward):
    assert boxed_answer(rf"\boxed{{{found}}}", {"answer": answer}) == reward


@pytest.mark.parametrize(
    ("found", "answer", "reward"),
    [
        ("1e999999999", "1", 0),
        ("1e999999999", 1, 0),
        ("10e999999998", "1e999999999", 1),
        ("1e-999999999", "0", 0),
        ("1e" + "9" * 30, "1e" + "9" * 30, 1),
        ("1e" + "9" * 30, "10e" + "9" * 30, 0),
        ("1e" + "9" * 100_000, "1", 0),
        ("9" * 1_000_000, "9" * 999_999 + "8", 0),
        ("9" * 1_000_000, "9" * 1_000_000 + ".0", 1),
        ("9" * 1_000_000 + "x", "9", 0),
        ("9" * 500_000 + "." + "9" * 500_000 + "e", "9", 0),
        ("1" + "0" * 9999, 10**9999, 1),
        ("1" + "0" * 9999, 10**9999 + 1, 0),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "number",
)
def test_huge_numbers_take_no_time(found, answer, reward):
    started = time.process_time()
    assert boxed_answer(rf"\boxed{{{found}}}", {"answer": answer}) == reward
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{" * 50_000, None),
        (r"\boxed{1}" + r"\boxed{" * 50_000, "1"),
        (r"\boxed{" * 50_000 + "2" + "}" * 50_000, "2"),
        (r"\boxed{3}" * 50_000, "3"),
        (r"\boxed{4}" + "{" * 100_000, "4"),
        (r"\boxed{5}" + "}" * 100_000, "5"),
        (r"\boxed{" + "{}" * 50_000 + "}", "{}" * 50_000),
    ],
    ids=["unclosed", "unclosed after one", "nested", "many", "open braces", "closing braces", "braces within"],
)
def test_boxes_are_found_in_linear_time(text, content):
    started = time.process_time()
    assert last_boxed(text) == content
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{4 \boxed{5} 6}", "5"),
        (r"\boxed{7 \boxed{8}", "8"),
        (r"} \boxed{9} }", "9"),
        (r"{ \boxed{10}", "10"),
        (r"\boxed{{11}", None),
        (r"\boxed {12}", None),
    ],
)
def test_the_last_box_that_closes_is_taken(text, content):
    assert last_boxed(text) == content
