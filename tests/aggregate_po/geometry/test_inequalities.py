"""Distances of the means of the worked completion, and their bounds."""

import math

import mpmath
import pytest
import torch

from aggregate_po.geometry import am_gm_bounds, am_gm_gap, log_power_mean_derivative, order_gap_bound
from tests.aggregate_po.worked_example import LOG_RATIO, close

ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("exponent", "slope"),
    [(-2.0, 0.07682175154), (-1.0, 0.08134434177), (0.0, 0.0775), (0.5, 0.07309909805), (2.0, 0.05653016415)],
)
def test_slope_of_the_log_mean(exponent, slope):
    close(log_power_mean_derivative(LOG_RATIO, ALL, exponent), [slope], tolerance=1e-9)


def test_gap_lies_between_its_bounds():
    """Variance 0.155; the deviations from the mean 0.1 run from -0.6 to 0.5."""
    close(am_gm_gap(LOG_RATIO, ALL), [math.log(1.188805784 / 1.105170918)])
    lower, upper = am_gm_bounds(LOG_RATIO, ALL)
    close(lower, [0.06210275392], tolerance=1e-10)
    close(upper, [0.08820059177], tolerance=1e-10)


def test_bound_of_hoeffding_is_the_better_one_where_half_the_tokens_stand_at_each_end():
    halves = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    close(am_gm_gap(halves, ALL), [math.log(math.cosh(1))], tolerance=1e-12)
    close(am_gm_bounds(halves, ALL)[1], [0.5], tolerance=1e-12)


def test_two_orders_are_at_most_an_eighth_of_the_squared_width_apart_for_each_unit():
    close(order_gap_bound(LOG_RATIO, ALL, 2.0, -2.0), [4 * 1.1**2 / 8])
    close(order_gap_bound(LOG_RATIO, ALL, torch.tensor([0.0]), torch.tensor([1.0])), [1.1**2 / 8])


@pytest.mark.parametrize("exponent", [5e-6, -5e-6, 6e-6, 1e-9])
def test_slope_of_the_log_mean_next_to_zero(exponent):
    """Half the variance, 0.155, and a third of the third moment, -0.0225, on either side of the change of formula."""
    close(log_power_mean_derivative(LOG_RATIO, ALL, exponent), [0.155 / 2 - 0.0225 / 3 * exponent], tolerance=1e-10)


@pytest.mark.parametrize("deviation", [1e-8, 9.99e-3, 1.001e-2, 3.0, 80.0])
def test_bound_by_the_variance_in_many_digits(deviation):
    with mpmath.workdps(50):
        smallest = -mpmath.mpf(deviation)
        expected = float(mpmath.log(1 + mpmath.exp(smallest) - 1 - smallest))
    row = torch.tensor([[deviation, -deviation, deviation, -deviation]], dtype=torch.float64)
    lower, _ = am_gm_bounds(row, ALL)
    assert lower.item() == pytest.approx(expected, rel=3e-12, abs=0)
