"""Estimates of accuracy, against enumeration and simulation."""

import itertools
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.evaluation import avg_at_k, avg_at_k_over_samples, maj_at_k, paired_difference, pass_at_k

PROBLEMS = st.integers(1, 6).flatmap(
    lambda samples: st.lists(st.lists(st.sampled_from([0, 1]), min_size=samples, max_size=samples), min_size=1)
)


@given(PROBLEMS, st.data())
def test_pass_at_k_counts_the_sets_with_a_right_completion(scores, data):
    k = data.draw(st.integers(1, len(scores[0])))
    sets = [list(itertools.combinations(problem, k)) for problem in scores]
    expected = fmean(fmean(max(chosen) for chosen in of_problem) for of_problem in sets)
    assert pass_at_k(scores, k).value == pytest.approx(expected)


def test_pass_at_k_by_hand():
    assert pass_at_k([[1, 0, 0, 0]], 2).value == 0.5  # three of six pairs
    assert pass_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 4).value == 0.5
    assert pass_at_k([[0.5, 0.9, 0, 1]], 1).value == 0.25  # partial credit is not right


@given(PROBLEMS)
def test_pass_at_1_is_the_mean(scores):
    assert pass_at_k(scores, 1).value == pytest.approx(avg_at_k(scores).value)


@given(PROBLEMS)
def test_the_interval_contains_the_estimate_within_0_and_1(scores):
    for estimate in (avg_at_k(scores), pass_at_k(scores, len(scores[0]))):
        assert 0 <= estimate.low <= estimate.value + 1e-12
        assert estimate.value - 1e-12 <= estimate.high <= 1


@pytest.mark.parametrize(
    ("answers", "scores", "value"),
    [
        (["7", "7", "8"], [1, 1, 0], 1),
        (["7", "8", "8"], [1, 0, 0], 0),
        (["7", "8"], [1, 0], 0.5),
        (["7", "8", "9"], [0, 1, 0], 1 / 3),
        ([None, None, "7"], [0, 0, 1], 1),
        ([None, None], [0, 0], 0),
    ],
)
def test_the_most_frequent_answer_decides(answers, scores, value):
    assert maj_at_k([answers], [scores]).value == pytest.approx(value)
    assert maj_at_k([answers, ["1"]], [scores, [1]]).value == pytest.approx((value + 1) / 2)


def sampled(generator, samples, rates):
    return [[float(generator.random() < rate) for _ in range(samples)] for rate in rates]


def rates(generator, mean, concentration, problems):
    """Pass rates of problems, from a beta distribution with the given mean."""
    return [generator.betavariate(mean * concentration, (1 - mean) * concentration) for _ in range(problems)]


def coverage(estimates):
    """Share of pairs of an estimate and the true value whose interval contains it."""
    return fmean(estimate.low <= true <= estimate.high for estimate, true in estimates)


@pytest.mark.parametrize("mean", [0.05, 0.3, 0.7])
@pytest.mark.parametrize(("problems", "samples", "concentration"), [(30, 1, 1.0), (30, 16, 0.3), (300, 4, 2.0)])
def test_intervals_of_the_mean_cover_at_their_level(mean, problems, samples, concentration):
    generator = random.Random(0)

    def one():
        return avg_at_k(sampled(generator, samples, rates(generator, mean, concentration, problems))), mean

    # With few problems the interval is wider than it need be; with many it covers at its level.
    assert 0.93 <= coverage(one() for _ in range(1000)) <= (0.999 if problems < 100 else 0.97)


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize(("problems", "samples", "concentration"), [(30, 4, 1.0), (30, 16, 2.0), (100, 2, 2.0)])
def test_intervals_over_samples_cover_the_mean_of_these_problems(mean, problems, samples, concentration):
    generator = random.Random(0)

    def one():
        these = rates(generator, mean, concentration, problems)
        return avg_at_k_over_samples(sampled(generator, samples, these)), fmean(these)

    # The docstring says that it covers less often where hardly any completion is right.
    assert (0.84 if mean < 0.1 else 0.92) <= coverage(one() for _ in range(500)) <= 0.98


def test_the_interval_over_samples_is_that_within_problems():
    certain = [[1, 1, 1, 1]] * 50 + [[0, 0, 0, 0]] * 50
    over_samples, over_problems = avg_at_k_over_samples(certain), avg_at_k(certain)
    assert over_samples.value == over_problems.value == 0.5
    assert over_samples.high - over_samples.low < 0.1 * (over_problems.high - over_problems.low)
    # One problem with 400 right completions of 1,000, and the variance 0.4 * 0.6 / 999 of their share.
    one = avg_at_k_over_samples([[1] * 400 + [0] * 600])
    reach = 1.959964 * (0.4 * 0.6 / 999) ** 0.5
    assert (one.low, one.high) == pytest.approx((0.4 - reach, 0.4 + reach), abs=0.001)


@given(PROBLEMS.filter(lambda scores: len(scores[0]) > 1))
def test_the_interval_over_samples_contains_the_estimate_within_0_and_1(scores):
    estimate = avg_at_k_over_samples(scores)
    assert estimate.value == avg_at_k(scores).value
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("k", [2, 4])
def test_intervals_of_pass_at_k_cover_at_their_level(k):
    generator, covered = random.Random(0), 0
    a, b = 0.6, 1.4  # of the beta distribution of the pass rates
    fail = 1.0
    for i in range(k):  # E[(1 - p)^k]
        fail *= (b + i) / (a + b + i)
    for _ in range(1000):
        scores = sampled(generator, 8, [generator.betavariate(a, b) for _ in range(100)])
        estimate = pass_at_k(scores, k)
        covered += estimate.low <= 1 - fail <= estimate.high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize(("problems", "samples"), [(30, 1), (30, 8), (200, 1)])
@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_intervals_of_a_paired_difference_cover_at_their_level(problems, samples, gain):
    generator, covered = random.Random(0), 0
    for _ in range(1000):
        before = [0.9 * rate for rate in rates(generator, 0.4, 1.0, problems)]
        first = sampled(generator, samples, before)
        second = sampled(generator, samples, [rate + gain for rate in before])
        estimate = paired_difference(first, second)
        covered += estimate.low <= gain <= estimate.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_paired_interval_is_narrower_than_that_of_two_separate_means():
    generator = random.Random(0)
    before = rates(generator, 0.5, 0.5, 200)
    first, second = sampled(generator, 16, before), sampled(generator, 16, before)
    paired, one = paired_difference(first, second), avg_at_k(first)
    assert paired.high - paired.low < one.high - one.low


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: avg_at_k([]), "`scores` has no problem"),
        (lambda: avg_at_k([[1], []]), "one without a completion"),
        (lambda: avg_at_k([[1.5]]), "`scores` has 1.5"),
        (lambda: avg_at_k([[float("nan")]]), "`scores` has nan"),
        (lambda: avg_at_k([[1]], level=1.0), "`level` is 1.0"),
        (lambda: avg_at_k_over_samples([[1, 0], [1]]), "a problem with one completion"),
        (lambda: pass_at_k([[1, 0], [1]], 2), "`k` is 2, but a problem has 1"),
        (lambda: pass_at_k([[1]], 0), "`k` is 0"),
        (lambda: paired_difference([[1]], [[1], [0]]), "`second` has 2 problems"),
        (lambda: maj_at_k([["1", "2"]], [[1]]), "`answers` has 2 of a problem with 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
