"""Numbers within a tolerance."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.rewards import NumericAnswer


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("3.14159", 3.1415926, 1.0),
        ("3.14", 3.1415926, 0.0),
        ("1,234.5", "1234.5", 1.0),
        (r"\frac{1}{3}", "1/3", 1.0),
        ("0.3333", "1/3", 0.0),
        ("1.8e1", 18, 1.0),
        ("$18", 18, 1.0),
        ("18 dollars.", 18, 1.0),
        ("17+1", 18, 0.0),
        ("nan", 18, 0.0),
        ("-0", 0, 1.0),
    ],
)
def test_a_number_near_the_reference_is_right(text, answer, reward):
    assert NumericAnswer()(rf"\boxed{{{text}}}", {"answer": answer}) == reward


@given(expected=st.integers(-(10**6), 10**6), apart=st.integers(-20, 20), tolerance=st.integers(0, 20))
def test_the_bound_itself_is_right(expected, apart, tolerance):
    """In eighths, which floats hold exactly."""
    found = Fraction(expected * 8 + apart, 8)
    reward = NumericAnswer(relative=0, absolute=tolerance / 8)
    text = f"{float(found):.3f}"
    assert reward(rf"\boxed{{{text}}}", {"answer": expected}) == float(abs(apart) <= tolerance)


def test_the_relative_tolerance_is_one_of_the_reference():
    reward = NumericAnswer(relative=0.25)
    assert [reward(rf"\boxed{{{text}}}", {"answer": -8}) for text in ("-10", "-6", "-10.01", "8")] == [1, 1, 0, 0]


def test_bad_tolerances_and_references_are_refused():
    with pytest.raises(ValueError, match=r"^`relative` is -1; pass 0 or a positive number"):
        NumericAnswer(relative=-1)
    with pytest.raises(ValueError, match=r"^`absolute` is nan"):
        NumericAnswer(absolute=float("nan"))
    with pytest.raises(ValueError, match=r"^`answer` of the example is 'x', which is no number; use another reward"):
        NumericAnswer()(r"\boxed{1}", {"answer": "x"})
