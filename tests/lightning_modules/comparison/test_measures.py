"""Measures of who gets the gradient, on a few tokens worked by hand."""

import math

import pytest
import torch

from lightning_modules.comparison.curves import _quantiles
from lightning_modules.comparison.measures import (
    by_completion,
    effective_fraction,
    effective_fraction_within,
    jaccard,
    share_of_largest,
    share_where,
    shares_by_quantile,
)

WEIGHTS = torch.tensor([3.0, -1.0, 0.0, 4.0], dtype=torch.double)  # sizes 3, 1, 0, 4 of 8
COMPLETION = torch.tensor([0, 0, 0, 1])


def test_the_band_of_a_bin_has_the_quantiles_of_torch():
    for count in (1, 2, 5, 1000):
        values = torch.randn(count, dtype=torch.double, generator=torch.Generator().manual_seed(count))
        expected = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=torch.double)).tolist()
        assert _quantiles(values) == pytest.approx(expected, abs=1e-12)


def test_share_of_some_tokens():
    assert share_where(WEIGHTS, torch.tensor([True, True, False, False])) == 0.5
    assert math.isnan(share_where(torch.zeros(2), torch.ones(2, dtype=torch.bool)))


@pytest.mark.parametrize(("fraction", "share"), [(0.01, 0.5), (0.25, 0.5), (0.26, 0.875), (1.0, 1.0)])
def test_share_of_the_largest_is_of_whole_tokens(fraction, share):
    assert share_of_largest(WEIGHTS, fraction) == share


def test_shares_by_quantile_of_different_values():
    values = torch.tensor([0.4, 0.1, 0.3, 0.2])  # from the lowest: 1, 4, 0, 3 of 8
    assert shares_by_quantile(WEIGHTS, values, 4) == [0.125, 0.5, 0.0, 0.375]
    assert shares_by_quantile(WEIGHTS, values, 2) == [0.625, 0.375]


def test_a_quantile_between_two_tokens_divides_the_weight_of_one():
    # Thirds of four tokens: the first third is all of the lowest and a third of the next.
    shares = shares_by_quantile(WEIGHTS, torch.tensor([0.4, 0.1, 0.3, 0.2]), 3)
    assert shares == pytest.approx([(1 + 4 / 3) / 8, (4 * 2 / 3) / 8, 3 / 8])


def test_equal_values_share_their_weight_evenly_in_any_order():
    values = torch.tensor([0.0, 0.0, 0.0, 1.0])  # three tokens with 4 of 8, and one with 4
    first = shares_by_quantile(WEIGHTS, values, 4)
    assert first == pytest.approx([4 / 24, 4 / 24, 4 / 24, 0.5])
    order = torch.tensor([2, 0, 1, 3])
    assert shares_by_quantile(WEIGHTS[order], values[order], 4) == first
    assert shares_by_quantile(WEIGHTS, torch.zeros(4), 10) == pytest.approx([0.1] * 10)


def test_measures_of_completions():
    assert by_completion(WEIGHTS, COMPLETION).tolist() == [4.0, 4.0]
    assert effective_fraction(by_completion(WEIGHTS, COMPLETION)) == 1.0
    assert effective_fraction(WEIGHTS) == 64 / (4 * 26)


def test_effective_fraction_within_completions_leaves_out_those_without_gradient():
    # The first has 16 / (3 * 10), the second 1, the third no gradient.
    weights, completion = torch.cat([WEIGHTS, torch.zeros(2)]), torch.cat([COMPLETION, torch.tensor([2, 2])])
    assert effective_fraction_within(weights, completion) == pytest.approx((16 / 30 + 1) / 2)
    assert math.isnan(effective_fraction_within(torch.zeros(2), torch.tensor([0, 1])))


def test_jaccard_index():
    first, second = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    assert jaccard(first, second) == 1 / 3
    assert math.isnan(jaccard(first & False, second & False))
