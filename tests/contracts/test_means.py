"""Monotonicity and limits of power means; `test_testing.py` tests that they are means."""

import math

import mpmath
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import ArithmeticMean, GeometricMean, LehmerMean, LengthScaledProduct, PowerMean, Product, TokenRatios
from aggregate_po.aggregators.power import log_power_mean
from aggregate_po.recipes import gmpo_no_clip, grpo
from tests.contracts.strategies import batches, exponents, token_ratios

ROUNDING = 1e-12  # of log means of numbers up to 80, in float64


def exponent_tensor(exponent, tokens):
    return torch.full((len(tokens.log_ratio),), exponent, dtype=torch.float64)


def power_mean(tokens, exponent):
    return log_power_mean(tokens.log_ratio, tokens.response_mask, exponent_tensor(exponent, tokens))


@given(token_ratios(), exponents(), exponents())
def test_power_means_rise_with_the_exponent(tokens, one, other):
    low, high = power_mean(tokens, min(one, other)), power_mean(tokens, max(one, other))
    assert (low <= high + ROUNDING).all()


@given(token_ratios(empty_rows=False), exponents())
def test_power_means_leave_the_geometric_mean_at_a_bounded_rate(tokens, exponent):
    """Hoeffding: |log M_p - log M_0| <= |p| range^2 / 8, on the side of the sign of p; so there is no jump at zero."""
    geometric = GeometricMean().log_aggregate(tokens)
    width = torch.where(tokens.response_mask, tokens.log_ratio, -math.inf).amax(dim=-1) - torch.where(
        tokens.response_mask, tokens.log_ratio, math.inf
    ).amin(dim=-1)
    distance = (power_mean(tokens, exponent) - geometric) * math.copysign(1, exponent)
    assert (distance >= -ROUNDING).all()
    assert (distance <= abs(exponent) * width.square() / 8 + ROUNDING).all()


@given(token_ratios(empty_rows=False), st.sampled_from([1e-10, 1e-8]))
def test_power_means_are_continuous_at_zero(tokens, exponent):
    """The slope at zero is half the variance of the log ratios, the same from both sides."""
    geometric = GeometricMean().log_aggregate(tokens)
    variance = torch.stack(
        [row[mask].var(correction=0) for row, mask in zip(tokens.log_ratio, tokens.response_mask, strict=True)]
    )
    for signed in (exponent, -exponent):
        slope = (power_mean(tokens, signed) - geometric) / signed
        assert ((slope - variance / 2).abs() <= 1e-13 / exponent + exponent * 160**3).all()


@given(token_ratios(max_time=12, empty_rows=False), exponents())
def test_power_means_equal_a_computation_in_many_digits(tokens, exponent):
    actual = power_mean(tokens, exponent).tolist()
    for row, mask, value in zip(tokens.log_ratio, tokens.response_mask, actual, strict=True):
        assert abs(value - exact_log_power_mean(row[mask].tolist(), exponent)) <= 1e-13


def exact_log_power_mean(log_values, exponent):
    """By the definition, with digits to spare for the cancellation at small exponents."""
    if exponent == 0:
        return math.fsum(log_values) / len(log_values)
    with mpmath.workdps(40 + max(0, -2 * math.frexp(exponent)[1])):
        order = mpmath.mpf(exponent)
        powers = [mpmath.exp(order * mpmath.mpf(value)) for value in log_values]
        return float(mpmath.log(mpmath.fsum(powers) / len(powers)) / order)


@given(token_ratios())
def test_named_means_are_power_means(tokens):
    for named, exponent in ((ArithmeticMean(), 1.0), (GeometricMean(), 0.0)):
        power = PowerMean(exponent)
        torch.testing.assert_close(named.log_aggregate(tokens), power.log_aggregate(tokens), rtol=0, atol=ROUNDING)
        torch.testing.assert_close(named.token_weights(tokens), power.token_weights(tokens), rtol=1e-11, atol=1e-300)


@given(token_ratios())
def test_product_is_the_geometric_mean_to_the_length(tokens):
    expected = GeometricMean().log_aggregate(tokens) * tokens.lengths
    torch.testing.assert_close(Product().log_aggregate(tokens), expected, rtol=1e-12, atol=1e-10)


@given(token_ratios())
def test_a_length_exponent_joins_the_product_and_the_geometric_mean(tokens):
    for named, exponent in ((Product(), 0.0), (GeometricMean(), 1.0)):
        scaled = LengthScaledProduct(exponent)
        torch.testing.assert_close(scaled.log_aggregate(tokens), named.log_aggregate(tokens), rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(scaled.token_weights(tokens), named.token_weights(tokens), rtol=1e-13, atol=0)


@given(token_ratios(), st.floats(0, 1))
def test_weights_of_a_scaled_product_sum_to_a_power_of_the_length(tokens, exponent):
    total = LengthScaledProduct(exponent).token_weights(tokens).sum(dim=-1)
    expected = torch.where(tokens.lengths > 0, tokens.lengths.double().clamp(min=1) ** (1 - exponent), 0)
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)


@given(token_ratios())
def test_lehmer_means_of_order_one_and_zero_are_arithmetic_and_harmonic(tokens):
    for order, mean in ((1.0, ArithmeticMean()), (0.0, PowerMean(-1.0))):
        lehmer = LehmerMean(order)
        torch.testing.assert_close(lehmer.log_aggregate(tokens), mean.log_aggregate(tokens), rtol=0, atol=1e-11)
        torch.testing.assert_close(lehmer.token_weights(tokens), mean.token_weights(tokens), rtol=1e-11, atol=1e-300)


@given(token_ratios(empty_rows=False), st.floats(-8, 8), st.floats(-8, 8))
def test_lehmer_means_rise_with_the_order(tokens, one, other):
    low, high = (LehmerMean(order).log_aggregate(tokens) for order in sorted((one, other)))
    assert (low <= high + ROUNDING).all()


@given(token_ratios(empty_rows=False), st.floats(1, 8))
def test_a_weight_of_a_lehmer_mean_is_negative_below_a_bound(tokens, order):
    """For orders above 1 where r < L (p - 1) / p."""
    lehmer = LehmerMean(order)
    weights = lehmer.token_weights(tokens)
    excess = order * (tokens.log_ratio - lehmer.log_aggregate(tokens).unsqueeze(-1)).exp() - (order - 1)
    assert (weights * excess >= -1e-12).all()


@given(token_ratios(), st.floats(0.1, 4))
def test_power_means_of_opposite_order_mirror_each_other(tokens, exponent):
    """M_-p(1 / r) = 1 / M_p(r)."""
    mirrored = TokenRatios(**{**vars(tokens), "log_ratio": -tokens.log_ratio})
    assert ((power_mean(mirrored, -exponent) + power_mean(tokens, exponent)).abs() <= ROUNDING).all()


@given(batches(limit=19, empty_rows=False))
def test_gmpo_is_no_larger_than_grpo_in_each_completion(case):
    """Unclipped, by the inequality of the means; a group of mixed signs is another matter."""
    log_probs, batch = case
    values = [
        (weights.advantages * weights.magnitude).abs()
        for weights in (
            gmpo_no_clip().gradient_weights(log_probs, batch),
            grpo(1.0, math.inf).gradient_weights(log_probs, batch),
        )
    ]
    assert (values[0] <= values[1] * (1 + 1e-12)).all()
