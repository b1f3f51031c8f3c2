"""Propositions on the weights of the power means, each against the definition in another form."""

import math

import mpmath
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import geometry
from aggregate_po.aggregators.power import log_power_mean
from tests.contracts.strategies import exponents, token_ratios

ROUNDING = 1e-12  # of numbers up to 80, in float64


def wide_exponents():
    """Orders up to a thousand, where the weights have long committed."""
    return st.one_of(exponents(), st.sampled_from([30.0, -30.0, 1e3, -1e3]))


def order(exponent, tokens):
    return torch.full((len(tokens.log_ratio),), exponent, dtype=torch.float64)


def apply(function, tokens, *more):
    return function(tokens.log_ratio, tokens.response_mask, *more)


def log_mean(tokens, exponent):
    return log_power_mean(tokens.log_ratio, tokens.response_mask, order(exponent, tokens))


def width(tokens):
    """Largest less smallest log ratio of each completion."""
    rows = [row[mask] for row, mask in zip(tokens.log_ratio, tokens.response_mask, strict=True)]
    return torch.stack([row.max() - row.min() for row in rows])


def slope(curve, exponent):
    """Derivative of a function of the exponent, by autograd."""
    return torch.autograd.functional.jacobian(curve, torch.tensor(exponent, dtype=torch.float64))


def rows(tokens):
    """Log ratios of each completion without padding."""
    return [row[mask] for row, mask in zip(tokens.log_ratio, tokens.response_mask, strict=True)]


# --- all functions against their definitions -------------------------------------------------------------------------


def exactly(log_ratio, exponent):
    """The definitions, with digits to spare for the cancellation at small exponents."""
    with mpmath.workdps(60 + max(0, -2 * math.frexp(exponent)[1])):
        p, x = mpmath.mpf(exponent), [mpmath.mpf(value) for value in log_ratio]
        powers = [mpmath.exp(p * value) for value in x]
        doubled = [mpmath.exp(2 * p * value) for value in x]
        weights = [power / mpmath.fsum(powers) for power in powers]
        mean = mpmath.fsum(weight * value for weight, value in zip(weights, x, strict=True))
        twice = mpmath.fsum(power * value for power, value in zip(doubled, x, strict=True)) / mpmath.fsum(doubled)
        variance = mpmath.fsum(weight * (value - mean) ** 2 for weight, value in zip(weights, x, strict=True))
        entropy = mpmath.log(mpmath.fsum(powers)) - p * mean
        ess = 1 / mpmath.fsum(weight**2 for weight in weights)
        plain = mpmath.fsum(x) / len(x)
        log_mean = mpmath.log(mpmath.fsum(powers) / len(x)) / p if exponent else plain
        extreme = min(log_ratio) if exponent < 0 else max(log_ratio)
        return {
            geometry.tilted_mean: mean,
            geometry.tilted_variance: variance,
            geometry.power_entropy: entropy,
            geometry.power_entropy_derivative: -p * variance,
            geometry.power_ess: ess,
            geometry.log_power_ess_derivative: 2 * (mean - twice),
            geometry.log_power_mean_derivative: (mpmath.log(len(x)) - entropy) / p**2 if exponent else variance / 2,
            geometry.log_variance_proxy: 2 * log_mean - mpmath.log(ess),
            geometry.residual_weight: mpmath.fsum(w for w, v in zip(weights, log_ratio, strict=True) if v != extreme),
        }


@given(token_ratios(max_time=8, empty_rows=False), wide_exponents())
def test_functions_equal_a_computation_in_many_digits(tokens, exponent):
    actual = {function: apply(function, tokens, exponent).tolist() for function in exactly([0.0], 1.0)}
    for row, log_ratio in enumerate(rows(tokens)):
        spread = float(log_ratio.max() - log_ratio.min())
        slack = dict.fromkeys(actual, 1e-50)
        slack |= {
            geometry.tilted_mean: ROUNDING,
            geometry.power_entropy: ROUNDING,
            geometry.log_power_ess_derivative: 1e-14 * spread + 1e-50,
            geometry.log_power_mean_derivative: 1e-9 * spread**2 + 1e-50,
            geometry.log_variance_proxy: ROUNDING,
        }
        for function, expected in exactly(log_ratio.tolist(), exponent).items():
            error = abs(actual[function][row] - float(expected))
            assert error <= 1e-11 * abs(float(expected)) + slack[function], function.__name__


# --- weights ---------------------------------------------------------------------------------------------------------


@given(token_ratios(), wide_exponents())
def test_weights_are_a_distribution_over_the_tokens(tokens, exponent):
    weights = apply(geometry.power_weights, tokens, exponent)
    assert (weights >= 0).all()
    assert (weights[~tokens.response_mask] == 0).all()
    assert ((weights.sum(dim=-1) - (tokens.lengths > 0).double()).abs() <= ROUNDING).all()


@given(token_ratios(), exponents())
def test_weights_are_the_gradient_of_the_log_mean(tokens, exponent):
    log_ratio = tokens.log_ratio.clone().requires_grad_()
    log_power_mean(log_ratio, tokens.response_mask, order(exponent, tokens)).sum().backward()
    assert ((apply(geometry.power_weights, tokens, exponent) - log_ratio.grad).abs() <= ROUNDING).all()


@given(token_ratios(limit=40, empty_rows=False), exponents(), st.floats(-40, 40))
def test_a_common_factor_leaves_the_geometry_alone(tokens, exponent, shift):
    moved = tokens.log_ratio + shift
    for function in (geometry.power_weights, geometry.power_ess, geometry.power_entropy, geometry.tilted_variance):
        before, after = apply(function, tokens, exponent), function(moved, tokens.response_mask, exponent)
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-11)


@given(token_ratios(limit=20, empty_rows=False), exponents())
def test_derivatives_in_the_exponent(tokens, exponent):
    """By automatic differentiation of the definitions, completion by completion."""
    weights = apply(geometry.power_weights_derivative, tokens, exponent)
    mean = apply(geometry.tilted_variance, tokens, exponent)
    entropy = apply(geometry.power_entropy_derivative, tokens, exponent)
    ess = apply(geometry.log_power_ess_derivative, tokens, exponent)
    for row, (x, mask) in enumerate(zip(rows(tokens), tokens.response_mask, strict=True)):

        def log_weights(p, x=x):
            return torch.log_softmax(p * x, dim=-1)

        expected = {
            "weights": (weights[row][mask], slope(lambda p: log_weights(p).exp(), exponent)),
            "mean": (mean[row], slope(lambda p, x=x: (log_weights(p).exp() * x).sum(), exponent)),
            "entropy": (entropy[row], slope(lambda p: -(log_weights(p).exp() * log_weights(p)).sum(), exponent)),
            "ess": (ess[row], slope(lambda p: -torch.logsumexp(2 * log_weights(p), dim=-1), exponent)),
        }
        for name, (actual, derivative) in expected.items():
            # Two terms of the size of the squared log ratios times the exponent cancel in the definition.
            torch.testing.assert_close(actual, derivative, rtol=1e-10, atol=1e-10, msg=name)


# --- monotone in the exponent ----------------------------------------------------------------------------------------


@given(token_ratios(empty_rows=False), wide_exponents(), wide_exponents())
def test_the_tilted_mean_rises(tokens, one, other):
    low, high = (apply(geometry.tilted_mean, tokens, p) for p in sorted((one, other)))
    assert (low <= high + ROUNDING).all()


@given(token_ratios(empty_rows=False), wide_exponents(), wide_exponents())
def test_entropy_and_effective_sample_size_fall_on_both_sides_of_zero(tokens, one, other):
    near, far = sorted((abs(one), abs(other)))
    for sign in (1, -1):
        for function, peak in (
            (geometry.power_entropy, tokens.lengths.double().log()),
            (geometry.power_ess, tokens.lengths.double()),
        ):
            closer, farther = apply(function, tokens, sign * near), apply(function, tokens, sign * far)
            assert (farther <= closer + 64 * ROUNDING).all()
            assert (closer <= peak + 64 * ROUNDING).all()
            torch.testing.assert_close(apply(function, tokens, 0.0), peak, rtol=1e-14, atol=1e-14)


@given(token_ratios(limit=20, empty_rows=False), st.floats(0.01, 2), st.sampled_from([1, -1]))
def test_effective_sample_size_falls_strictly_unless_all_ratios_are_equal(tokens, exponent, sign):
    derivative = sign * apply(geometry.log_power_ess_derivative, tokens, sign * exponent)
    assert (derivative[width(tokens) == 0] == 0).all()
    assert (derivative <= 0).all()
    # Farther apart the other weights vanish against one in rounding, and the derivative with them.
    assert (derivative[(width(tokens) > 1e-6) & (exponent * width(tokens) < 15)] < 0).all()


@given(token_ratios(empty_rows=False), exponents())
def test_effective_sample_size_in_terms_of_two_power_means(tokens, exponent):
    expected = tokens.lengths.double().log() - 2 * exponent * (
        log_mean(tokens, 2 * exponent) - log_mean(tokens, exponent)
    )
    assert ((apply(geometry.power_ess, tokens, exponent).log() - expected).abs() <= 100 * ROUNDING).all()


@given(token_ratios(empty_rows=False), st.floats(0.02, 0.999), st.sampled_from([0.5, 1.0, 8.0, 1e3]))
def test_exponent_of_a_share_meets_it_or_is_an_end(tokens, share, largest):
    exponent = apply(geometry.exponent_of_ess, tokens, share, largest)
    attained = apply(geometry.power_ess, tokens, exponent) / tokens.lengths
    assert ((exponent >= 0) & (exponent <= largest)).all()
    inside = exponent < largest
    # The exponent is known to the resolution of the interval; this is what a last bit is worth in effective tokens.
    slack = 1e-12 + largest * 2**-51 * width(tokens)
    assert ((attained - share).abs() <= slack)[inside].all()
    assert (attained >= share - 1e-12)[~inside].all()


# --- inequalities of the means ---------------------------------------------------------------------------------------


@given(token_ratios(limit=40, empty_rows=False), st.floats(0.05, 8), st.sampled_from([1, -1]))
def test_the_log_mean_rises_at_the_rate_of_the_divergence_from_even_weights(tokens, exponent, sign):
    derivative = apply(geometry.log_power_mean_derivative, tokens, sign * exponent)
    for row, x in enumerate(rows(tokens)):
        centered = x - x.mean()
        rate = slope(lambda p, x=centered: (torch.logsumexp(p * x, dim=-1) - math.log(len(x))) / p, sign * exponent)
        assert abs(derivative[row] - rate) <= 1e-9


@given(token_ratios(empty_rows=False), wide_exponents())
def test_its_rate_is_an_average_of_variances(tokens, exponent):
    """The integral of s Var(s p) by the midpoint rule, whose error is about the second derivative over 24 N^2."""
    scaled = tokens.log_ratio / (1 + width(tokens).unsqueeze(-1) * (1 + abs(exponent)))
    derivative = geometry.log_power_mean_derivative(scaled, tokens.response_mask, exponent)
    points = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    terms = [s * geometry.tilted_variance(scaled, tokens.response_mask, s.item() * exponent) for s in points]
    torch.testing.assert_close(derivative, torch.stack(terms).mean(dim=0), rtol=1e-4, atol=1e-300)


@given(token_ratios(empty_rows=False), wide_exponents(), wide_exponents())
def test_no_two_means_are_farther_apart_than_the_bound(tokens, one, other):
    distance = (log_mean(tokens, one) - log_mean(tokens, other)).abs()
    assert (distance <= apply(geometry.order_gap_bound, tokens, one, other) + ROUNDING).all()
    rate = apply(geometry.log_power_mean_derivative, tokens, one)
    assert (rate >= 0).all()
    assert (rate <= width(tokens).square() / 8 * (1 + 1e-9)).all()


@given(token_ratios(empty_rows=False))
def test_the_gap_of_arithmetic_and_geometric_mean_lies_between_its_bounds(tokens):
    gap = apply(geometry.am_gm_gap, tokens)
    lower, upper = apply(geometry.am_gm_bounds, tokens)
    assert ((gap - (log_mean(tokens, 1.0) - log_mean(tokens, 0.0))).abs() <= ROUNDING).all()
    slack = 1e-11 * upper + 1e-15 * width(tokens)
    assert (lower >= 0).all()
    assert (lower <= gap + slack).all()
    assert (gap <= upper + slack).all()
    assert (upper <= width(tokens).square() / 8 * (1 + 1e-12)).all()


@given(token_ratios(empty_rows=False))
def test_near_equal_ratios_both_bounds_are_half_the_variance(tokens):
    small = 1e-6 * tokens.log_ratio
    variance = geometry.tilted_variance(small, tokens.response_mask, 0.0)
    lower, upper = geometry.am_gm_bounds(small, tokens.response_mask)
    for bound in (lower, upper):
        torch.testing.assert_close(bound, variance / 2, rtol=1e-3, atol=1e-25)


# --- committal -------------------------------------------------------------------------------------------------------


@given(token_ratios(), wide_exponents(), wide_exponents())
def test_weight_commits_to_the_extreme_tokens(tokens, one, other):
    for sign in (1, -1):
        # Not -0, which counts as 0: there the extreme tokens are the largest.
        near, far = (sign * max(abs(p), 1e-300) for p in sorted((one, other), key=abs))
        less, more = (apply(geometry.extreme_weight, tokens, p) for p in (near, far))
        assert (less <= more + ROUNDING).all()
        residual = apply(geometry.residual_weight, tokens, far)
        assert ((more + residual - (tokens.lengths > 0).double()).abs() <= ROUNDING).all()


@given(token_ratios(empty_rows=False), wide_exponents())
def test_what_is_left_decays_at_the_rate_of_the_gap(tokens, exponent):
    residual = apply(geometry.residual_weight, tokens, exponent)
    bound = apply(geometry.residual_weight_bound, tokens, exponent)
    assert (residual <= bound * (1 + 1e-10) + 1e-300).all()
    for row, x in enumerate(rows(tokens)):
        signed = sorted((x if exponent >= 0 else -x).tolist(), reverse=True)
        ties = signed.count(signed[0])
        if ties < len(signed):
            decay = math.exp(-abs(exponent) * (signed[0] - signed[ties]))
            assert bound[row] <= (len(signed) - ties) / ties * decay * (1 + 1e-10) + 1e-300
            # One token at least stands at the gap, so no faster rate holds.
            assert residual[row] >= (1 - 1e-10) * decay / ties / (1 + decay * (len(signed) - ties) / ties) - 1e-300


@given(token_ratios(empty_rows=False), st.sampled_from([0.5, 0.01, 1e-6]), st.floats(1, 10))
def test_committal_exponent_leaves_no_more_than_it_promises(tokens, residual, factor):
    needed = apply(geometry.committal_exponent, tokens, residual)
    reachable = needed * factor < 1e12
    left = apply(geometry.residual_weight, tokens, torch.where(reachable, needed * factor, 0))
    assert (left <= residual * (1 + 1e-9))[reachable].all()


# --- the variance proxy ----------------------------------------------------------------------------------------------


@given(token_ratios(limit=30, empty_rows=False), exponents())
def test_proxy_is_the_squared_gradient_of_the_mean_over_orthogonal_token_gradients(tokens, exponent):
    """Log ratios as coordinates are orthogonal directions of unit length."""
    log_ratio = tokens.log_ratio.clone().requires_grad_()
    log_power_mean(log_ratio, tokens.response_mask, order(exponent, tokens)).exp().sum().backward()
    squared = log_ratio.grad.square().sum(dim=-1)
    torch.testing.assert_close(apply(geometry.variance_proxy, tokens, exponent), squared, rtol=1e-10, atol=0)


@given(token_ratios(empty_rows=False), wide_exponents(), wide_exponents())
def test_proxy_rises_above_zero(tokens, one, other):
    low, high = (apply(geometry.log_variance_proxy, tokens, p) for p in sorted((abs(one), abs(other))))
    assert (low <= high + 64 * ROUNDING).all()


@given(token_ratios(limit=4, empty_rows=False))
def test_so_its_minimum_lies_below_zero(tokens):
    exponent = apply(geometry.variance_minimizing_exponent, tokens)
    assert ((exponent < 0) == (width(tokens) > 0)).all()
    smallest = apply(geometry.log_variance_proxy, tokens, exponent)
    for other in torch.linspace(-8, 2, 161, dtype=torch.float64):
        assert (smallest <= apply(geometry.log_variance_proxy, tokens, other) + ROUNDING).all()


@given(token_ratios(limit=1, empty_rows=False))
def test_its_slope_at_zero_is_the_variance_of_the_log_ratios(tokens):
    step = 1e-4
    up, down = (apply(geometry.log_variance_proxy, tokens, p) for p in (step, -step))
    variance = apply(geometry.tilted_variance, tokens, 0.0)
    assert (((up - down) / (2 * step) - variance).abs() <= 1e-7).all()


@given(token_ratios(empty_rows=False))
def test_near_equal_ratios_the_proxy_is_a_parabola_around_minus_one_half(tokens):
    small = 1e-4 * tokens.log_ratio
    variance = geometry.tilted_variance(small, tokens.response_mask, 0.0)
    at_zero = geometry.log_variance_proxy(small, tokens.response_mask, 0.0)
    for exponent in (-2.0, -1.0, -0.5, 1.0):
        change = geometry.log_variance_proxy(small, tokens.response_mask, exponent) - at_zero
        # The third order is the cube of the width, at most 0.016.
        assert ((change - variance * (exponent + exponent**2)).abs() <= 20 * (1e-4 * width(tokens)) ** 3 + 1e-13).all()


@given(token_ratios(empty_rows=False))
def test_proxy_falls_to_its_limit_below_zero(tokens):
    """The squared smallest ratio over the number of tokens that have it, approached from above."""
    for row, x in enumerate(rows(tokens)):
        ties = int((x == x.min()).sum())
        limit = 2 * x.min().item() - math.log(ties)
        if ties < len(x) and (x[x > x.min()].min() - x.min()) * 1e3 > 50:
            value = apply(geometry.log_variance_proxy, tokens, -1e3)[row].item()
            assert limit - 1e-11 <= value <= limit + 2 * math.log(len(x) / ties) / 1e3 + 1e-11
