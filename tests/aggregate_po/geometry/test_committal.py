"""Weight of the extreme tokens of the worked completion: 0.6 before 0.2 above, -0.5 before 0.1 below."""

import math

import pytest
import torch

from aggregate_po.geometry import committal_exponent, extreme_weight, residual_weight, residual_weight_bound
from tests.aggregate_po.worked_example import LOG_RATIO, close

ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("exponent", "weight", "gap"), [(10.0, 0.9755428599, 0.4), (-10.0, 0.9966042347, 0.6), (0.0, 0.25, 0.4)]
)
def test_weight_of_the_extreme_token(exponent, weight, gap):
    close(extreme_weight(LOG_RATIO, ALL, exponent), [weight], tolerance=1e-10)
    close(residual_weight(LOG_RATIO, ALL, exponent), [1 - weight], tolerance=1e-10)
    odds = 3 * math.exp(-abs(exponent) * gap)
    close(residual_weight_bound(LOG_RATIO, ALL, exponent), [odds / (1 + odds)], tolerance=1e-10)


def test_tokens_that_tie_share_the_weight():
    tied = torch.tensor([[0.6, -0.5, 0.6, -0.5]], dtype=torch.float64)
    odds = math.exp(-1.1 * 3)
    close(extreme_weight(tied, ALL, 3.0), [1 / (1 + odds)], tolerance=1e-12)
    close(residual_weight_bound(tied, ALL, 3.0), [odds / (1 + odds)], tolerance=1e-12)  # exact: one distance only


def test_exponent_that_commits_all_but_a_hundredth():
    close(committal_exponent(LOG_RATIO, ALL), [(math.log(3) + math.log(99)) / 0.4], tolerance=1e-9)
    close(committal_exponent(-LOG_RATIO, ALL), [(math.log(3) + math.log(99)) / 0.6], tolerance=1e-9)


def test_nothing_is_left_where_all_ratios_are_equal():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    equal = torch.full((3, 2), 0.25)
    assert extreme_weight(equal, mask, 7.0).tolist() == [1.0, 1.0, 0.0]
    assert residual_weight(equal, mask, 7.0).tolist() == [0.0, 0.0, 0.0]
    assert residual_weight_bound(equal, mask, 7.0).tolist() == [0.0, 0.0, 0.0]
    assert committal_exponent(equal, mask).tolist() == [0.0, 0.0, 0.0]


def test_generous_residual_needs_no_exponent():
    assert committal_exponent(LOG_RATIO, ALL, 0.8).item() == 0


@pytest.mark.parametrize("residual", [0.0, 1.0, -0.1, float("nan")])
def test_residual_is_a_weight(residual):
    with pytest.raises(ValueError, match="`residual` is"):
        committal_exponent(LOG_RATIO, ALL, residual)
