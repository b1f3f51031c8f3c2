"""The variance proxy of the worked completion, and the exponent that makes it smallest."""

import pytest
import torch

from aggregate_po.geometry import log_variance_proxy, variance_minimizing_exponent, variance_proxy
from tests.aggregate_po.worked_example import LOG_RATIO, close

ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("exponent", "proxy"),
    [(2.0, 0.58097786), (1.0, 0.40007649), (0.0, 0.30535069), (-0.49204, 0.29379331), (-2.0, 0.37534041)],
)
def test_variance_proxy(exponent, proxy):
    close(variance_proxy(LOG_RATIO, ALL, exponent), [proxy])
    close(log_variance_proxy(LOG_RATIO, ALL, exponent).exp(), [proxy])


def test_exponent_of_the_smallest_proxy():
    close(variance_minimizing_exponent(LOG_RATIO, ALL), [-0.492040817], tolerance=1e-9)


@pytest.mark.parametrize("level", [0.0, 80.0])
def test_nearly_equal_ratios_are_minimized_at_minus_one_half(level):
    """By symmetry of the second order; the third moment of these log ratios moves it by a quarter of their size."""
    close(variance_minimizing_exponent(level + 1e-4 * LOG_RATIO, ALL), [-0.5], tolerance=1e-4)


def test_the_interval_may_end_before_the_valley():
    close(variance_minimizing_exponent(LOG_RATIO, ALL, lowest=-0.25), [-0.25])


def test_equal_ratios_and_no_token_give_zero():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    assert variance_minimizing_exponent(torch.full((3, 2), 0.25), mask).tolist() == [0.0, 0.0, 0.0]


def test_the_logarithm_stays_finite_where_the_proxy_does_not():
    row, mask = torch.full((1, 4), 80.0), ALL
    assert variance_proxy(row, mask, 1.0).isinf().all()
    close(log_variance_proxy(row, mask, 1.0), [160 - 1.386294361], tolerance=1e-4)


@pytest.mark.parametrize("lowest", [0.0, 1.0, -float("inf"), float("nan")])
def test_an_interval_needs_a_lower_end(lowest):
    with pytest.raises(ValueError, match="`lowest` is"):
        variance_minimizing_exponent(LOG_RATIO, ALL, lowest)
