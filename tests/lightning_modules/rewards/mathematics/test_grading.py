"""The equality of answers."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.rewards.mathematics import MathReward, plain_number, same_answer
from lightning_modules.rewards.mathematics.normalization import normalized

pytest.importorskip("math_verify", reason="math-verify is not installed")

SHARED = Path(__file__).resolve().parents[5] / "shared"

RIGHT = [
    # numbers
    ("42", "42"),
    ("42.0", "42"),
    ("42", "42.0"),
    ("+42", "42"),
    ("042", "42"),
    ("42.", "42"),
    ("$42$", "42"),
    (r"\$42", "42"),
    (r"42\%", "42"),
    ("42%", "42"),
    ("42 apples", "42"),
    (r"42\text{ apples}", "42"),
    (r"42\ \mathrm{cm}^2", "42"),
    (r"42^\circ", "42"),
    (r"4\pi\text{ cm}^2", r"4\pi"),
    ("x^2+2ab", "2ba + x^2"),
    ("42cm", "42"),
    ("42 mL", "42"),
    ("42 km/h", "42"),
    ("42 km / h", "42"),
    ("42 miles/hour", "42"),
    ("42 m/s^2", "42"),
    ("42 sq ft", "42"),
    ("42 dog", "42"),
    ("5 million", "5000000"),
    ("5000000", r"5 \text{ million}"),
    ("5,000,000", r"5\text{ million dollars}"),
    ("2.5 Thousand", "2500"),
    ("-3 dozen eggs", "-36"),
    ("42°", "42"),
    ("12,345", "12345"),
    ("12{,}345", "12345"),
    (r"12\,345", "12345"),
    (r"12\!,345", "12345"),
    ("1234567", "1,234,567"),
    ("4.2e1", "42"),
    (r"4.2 \times 10^1", "42"),
    (r"10^{3}", "1000"),
    ("x = 42", "42"),
    ("\N{MINUS SIGN}3", "-3"),
    (".25", "0.25"),
    ("0.25", "1/4"),
    (r"\frac14", "0.25"),
    (r"\dfrac{1}{4}", "1/4"),
    (r"\tfrac1{4}", "1/4"),
    (r"-\frac{1}{4}", r"\frac{-1}{4}"),
    (r"2\frac{1}{4}", "9/4"),
    (r"0.18", r"18\%"),
    (r"18\%", "0.18"),
    (r"50\%", r"\frac12"),
    ("50 percent", "0.5"),
    ("1.5%", "1.5"),
    ("3 1/4", "13/4"),
    ("-3 1/4", "-3.25"),
    # what a number is said to be
    ("AB = 42", "42"),
    ("f(2)=42", "42"),
    (r"\theta = 42", "42"),
    (r"m\angle ABC = 42^\circ", "42"),
    (r"P(A) = \frac{1}{3}", "1/3"),
    ("x_1 + y = 42", "42"),
    ("= 42", "42"),
    (r"\approx 42", "42"),
    (r"\boxed{42}", "42"),
    (r"\boxed{\frac{1}{3}}", r"\frac13"),
    ("(42)", "42"),
    (r"\left(42\right)", "42"),
    ("{42}", "42"),
    ("42 m", "42"),
    ("42m", "42"),
    ("42 m^2", "42"),
    (r"42^\circ C", "42"),
    (r"42\ \mathrm{m\,s^{-1}}", "42"),
    (r"\pounds 42", "42"),
    ("\N{EURO SIGN}42", "42"),
    ("42nd", "42"),
    (r"43^{\text{rd}}", "43"),
    (r"\bf 42", "42"),
    (r"\displaystyle\frac{1}{4}", r"\frac{1}{4}"),
    # words and choices
    ("B", r"\text{(B)}"),
    (r"\textbf{(B)}", "B"),
    ("Monday", r"\text{Monday}"),
    ("monday", "Monday"),
    # intervals, tuples, sets, lists
    ("[2,5)", r"\left[2, 5\right)"),
    (r"(-\infty, 3]", r"(-\infty,3]"),
    (r"\left(2,\frac{\pi}{3}\right)", r"(2, \pi/3)"),
    ("3,1,2", "1, 2, 3"),
    (r"\{3, 4\}", "3,4"),
    (r"3 \text{ and } 4", "3,4"),
    ("3 and 4", "3, 4"),
    # expressions
    (r"3\sqrt2", r"3\sqrt{2}"),
    (r"\sqrt{18}", r"3\sqrt{2}"),
    ("2+x", "x+2"),
    (r"x^2-1", r"(x-1)(x+1)"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    (r"132_{4}", "132_4"),
]
WRONG = [
    ("43", "42"),
    (r"0.5\%", "0.5"),
    (r"18\%", "1.8"),
    ("2x = 42", "42"),
    ("x^2 = 42", "42"),
    ("x != 42", "42"),
    ("40+2 = 42", "42"),
    ("(42, 43)", "42"),
    ("42m", "43"),
    ("2", "2m"),
    ("3 1/4", "31/4"),
    ("2", "2ab"),
    ("x^2+2", "x^2+2ab"),
    ("2a", "2ab"),
    ("2xyz", "2"),
    ("2", "2 xy"),
    ("2", "2 pi"),
    ("2", "2 log x"),
    ("5", "5 million"),
    (r"5\text{ million}", "5"),
    ("3 dozen", "3"),
    ("5 millionaires", "5000000"),
    ("", "0"),
    ("nan", "0"),
    ("silent", r"\text{listen}"),
    ("Monday", "Friday"),
    ("40+2", "42"),
    (r"6 \cdot 7", "42"),
    ("84/2", "42"),
    (r"\frac{84}{2}", "42"),
    (r"\sqrt{1764}", "42"),
    ("4!", "24"),
    ("2^5", "32"),
    ("42x", "42"),
    ("1,2", "12"),
    ("101_2", "101"),
    ("101", "101_2"),
    ("(2,5)", "[2,5)"),
    ("(5,2)", "(2,5)"),
    ("-3", "3"),
    (r"\frac{1}{3}", r"\frac{1}{4}"),
    ("0.3333", "1/3"),
    ("90071992547409931", "90071992547409930"),
    ("1e400", "2e400"),
    ("None", "0"),
    ("C", "B"),
    ("x", "y"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}0&1\\1&0\end{pmatrix}"),
    ("1_000", "1000"),
]


@pytest.mark.parametrize(("answer", "reference"), RIGHT)
def test_other_spellings_are_right(answer, reference):
    assert same_answer(answer, reference)


@pytest.mark.parametrize(("answer", "reference"), WRONG)
def test_other_answers_are_wrong(answer, reference):
    assert not same_answer(answer, reference)


@pytest.mark.parametrize("answer", ["40+2", r"\frac{84}{2}", r"\sqrt{1764}", "42"])
def test_an_expression_is_right_where_it_is_asked_for(answer):
    assert same_answer(answer, "42", evaluate=True)


@pytest.mark.parametrize(
    "answer",
    [r"9^{9^{9^9}}", r"((9^{999})^{999})^{999}", "2^{1000000000}", "(10^9)!", r"\sum_{k=1}^{10^9} k", "{" * 5000],
)
def test_answers_that_cost_without_bound_are_wrong_at_once(answer):
    assert not same_answer(answer, "42", evaluate=True)
    assert not same_answer(answer, r"\sqrt{2}")


SPELLINGS = [
    lambda number: f"{number}",
    lambda number: f"{number:,}",
    lambda number: f"{number:,}".replace(",", "{,}"),
    lambda number: f"{number}.0",
    lambda number: f"x={number}",
    lambda number: f"${number}$",
    lambda number: rf"{number}\text{{ m}}",
    lambda number: f"{number} meters.",
    lambda number: rf"{number}\%",
]
NUMBERS = st.integers(-(10**20), 10**20)


@given(number=NUMBERS, other=NUMBERS, first=st.sampled_from(SPELLINGS), second=st.sampled_from(SPELLINGS))
def test_spellings_of_integers_are_equal_exactly_where_the_integers_are(number, other, first, second):
    assert same_answer(first(number), second(number))
    assert same_answer(first(number), second(other)) == (number == other)


@given(top=st.integers(-999, 999), bottom=st.integers(2, 999))
def test_fractions_have_their_exact_value(top, bottom):
    value = Fraction(top, bottom)
    expected = None if value.denominator == 1 else value
    assert plain_number(rf"\frac{{{top}}}{{{bottom}}}") == plain_number(f"{top}/{bottom}") == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_decimals_have_their_exact_value(number):
    assert plain_number(f"{number:f}") == Fraction(number)
    assert plain_number(f"{number:,f}") == Fraction(number)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_has_a_verdict(answer, reference):
    assert same_answer(answer, reference) in (False, True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\boxed{0.50}", r"\boxed{\frac12}"),
        (r"\boxed{1{,}000}", "<answer>1e3</answer>"),
        (r"\boxed{x + 1}", r"first \boxed{2}, then \boxed{x+1}"),
        (r"\boxed{Evelyn}", r"\boxed{\text{evelyn}}"),
        (r"\boxed{18\text{ dollars}}", "#### 18"),
    ],
)
def test_equal_answers_vote_for_the_same_text(first, second):
    vote = MathReward().answer(first)
    assert vote is not None
    assert vote == MathReward().answer(second)


def test_other_answers_vote_otherwise_and_none_not_at_all():
    votes = [MathReward().answer(rf"\boxed{{{text}}}") for text in ("1", "2", "x", "X", "1" * 1001)]
    assert len({*votes}) == 5
    assert MathReward().answer("There is none: 18.") is None
    assert MathReward(answer_forms=["last_number"]).answer("There is none: 18.") == "18"
    assert MathReward().answer(r"\boxed{ }") is None


def test_the_reward_reads_the_field_and_the_forms():
    example = {"prompt": "6 * 7?", "answer": 42.0, "solution": "43"}
    assert MathReward()(r"\boxed{42}", example) == 1
    assert MathReward("solution")(r"\boxed{42}", example) == 0
    assert MathReward(answer_forms=["answer_tags"])(r"\boxed{42}", example) == 0
    assert MathReward()("42", example) == 0
    with pytest.raises(ValueError, match="`answer_field` is 'gold', which the example lacks"):
        MathReward("gold")(r"\boxed{42}", example)


@pytest.mark.parametrize(
    "reference",
    [
        "6 * 3 = <<6*3=18>>18 apples are left.\n#### 18",
        r"There are $6 \cdot 3 = \boxed{18}$ apples.",
        r"First \boxed{3}, so \boxed{18}.",
        "18",
        r"$18$",
    ],
)
def test_a_solution_as_the_reference_counts_by_its_final_answer(reference):
    assert MathReward()(r"\boxed{18}", {"answer": reference}) == 1
    assert MathReward()(r"\boxed{3}", {"answer": reference}) == 0
    assert MathReward()(r"\boxed{6}", {"answer": reference}) == 0


def read(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_reference_solutions_are_right_and_other_solutions_wrong():
    problems = read("data/math500_first300.jsonl")
    reward = MathReward()
    assert sum(reward(problem["solution"], problem) for problem in problems) >= 299
    shifts = (1, 17, 101)
    pairs = [(problems[(i + shift) % len(problems)], problem) for shift in shifts for i, problem in enumerate(problems)]
    taken = [(o["answer"], p["answer"]) for o, p in pairs if reward(o["solution"], p) and o["answer"] != p["answer"]]
    assert [pair for pair in taken if normalized(pair[0]) != normalized(pair[1])] == []  # 90^\circ and 90, x=5 and 5


@pytest.mark.parametrize("name", ["gsm8k_train", "aime24", "amc23"])
def test_answers_of_problem_sets_are_right(name):
    for problem in read(f"data/{name}.jsonl"):
        answer = str(problem["answer"])
        for completion in (rf"\boxed{{{answer}}}", f"#### {answer}", f"<answer>{answer}</answer>"):
            assert MathReward()(completion, problem) == 1, answer
            assert MathReward()(completion.replace(answer, f"{answer}1"), problem) == 0, answer


def test_other_spellings_of_graders_are_right():
    for form in read("faults/grader_forms.jsonl"):
        assert MathReward()(form["completion"], form) == form["right"], form


def test_a_missing_grader_is_an_error_before_the_run(monkeypatch):
    monkeypatch.setattr("lightning_modules.rewards.mathematics.reward.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*\[math\].*, or use NumericAnswer"):
        MathReward()
