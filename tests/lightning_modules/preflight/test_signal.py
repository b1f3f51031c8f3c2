"""The expected share of groups with signal: worked examples, limits, and groups drawn from known distributions."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.preflight import PassRates


def groups(right, size):
    return [[1] * count + [0] * (size - count) for count in right]


def test_the_share_at_one_pass_rate():
    # 1 - 0.5^4 - 0.5^4 and 1 - 0.1^8 - 0.9^8
    assert PassRates(0.5, 0.0).share(4) == pytest.approx(0.875)
    assert PassRates(0.1, 0.0).share(8) == pytest.approx(0.56953278)


def test_the_share_over_uniform_pass_rates():
    # Beta(1, 1) has mean 1/2 and variance 1/12; the mean of p^G is 1 / (G + 1), and so is that of (1 - p)^G.
    rates = PassRates(0.5, 1 / 12)
    for size in (2, 4, 8):
        assert rates.share(size) == pytest.approx(1 - 2 / (size + 1))
    assert rates.share_at_mean(4) == pytest.approx(0.875)


def test_prompts_that_are_solved_always_or_never_give_no_signal():
    assert PassRates(0.3, 0.3 * 0.7).share(8) == 0
    assert PassRates.of(groups([0, 8, 0, 8], 8)).share(8) == 0
    assert PassRates.of(groups([0, 0], 8)) == PassRates(0.0, 0.0)
    assert PassRates.of(groups([8, 8], 8)).share(32) == 0


def test_the_estimate_worked_by_hand():
    # Groups of 4 with 1 and 3 right: mean 1/2; pairs of right ones 0 of 12 and 6 of 12, so the mean square is 1/4.
    assert PassRates.of(groups([1, 3], 4)) == PassRates(0.5, 0.0)
    # With 0 and 4 right: 0 and 12 of 12, mean square 1/2, variance 1/4, the largest.
    assert PassRates.of(groups([0, 4], 4)) == PassRates(0.5, 0.25)
    # With 1, 1 and 4 right: mean 1/2, mean square (0 + 0 + 1) / 3.
    assert PassRates.of(groups([1, 1, 4], 4)).variance == pytest.approx(1 / 3 - 1 / 4)
    # Groups of 2 and 4, with 1 right in each: mean (1/2 + 1/4) / 2, and no pair of right ones.
    assert PassRates.of([[1, 0], [0, 0, 1, 0]]) == PassRates(0.375, 0.0)


@given(alpha=st.integers(1, 6), beta=st.integers(1, 6), size=st.integers(2, 12))
def test_the_share_equals_the_integral_over_the_beta_distribution(alpha, beta, size):
    total = alpha + beta
    rates = PassRates(alpha / total, alpha * beta / (total**2 * (total + 1)))

    def moment(first, second):  # B(first + size, second) / B(first, second), by factorials
        return Fraction(
            math.factorial(first + size - 1) * math.factorial(first + second - 1),
            math.factorial(first - 1) * math.factorial(first + second + size - 1),
        )

    assert rates.share(size) == pytest.approx(float(1 - moment(alpha, beta) - moment(beta, alpha)))
    assert rates.share(size) <= rates.share_at_mean(size) + 1e-12
    assert rates.share(size) <= rates.share(size + 1) + 1e-12


def test_the_estimate_finds_the_distribution_that_groups_were_drawn_from():
    draws = random.Random(0)
    rates = [draws.betavariate(0.5, 1.5) for _ in range(20_000)]
    right = [sum(draws.random() < rate for _ in range(8)) for rate in rates]
    found = PassRates.of(groups(right, 8))
    assert found.mean == pytest.approx(0.25, abs=0.01)
    assert found.variance == pytest.approx(0.0625, abs=0.003)  # 0.25 * 0.75 / 3
    observed = sum(0 < count < 8 for count in right) / len(right)
    assert found.share(8) == pytest.approx(observed, abs=0.01)
    assert found.share_at_mean(8) - observed > 0.2  # all prompts alike would be far off


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PassRates(1.5, 0.0), "`mean` is 1.5"),
        (lambda: PassRates(0.5, 0.3), "`variance` is 0.3"),
        (lambda: PassRates.of([]), "groups of \\[\\] completions"),
        (lambda: PassRates.of([[1, 0], [1]]), "groups of \\[2, 1\\] completions"),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
