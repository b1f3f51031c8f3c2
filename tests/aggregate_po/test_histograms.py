"""Quantiles and shares from histograms, against those of all numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po.histograms import SignedLogBins, top_share

BINS = SignedLogBins(finest=1e-6, width=0.05, largest=1e6)
NUMBERS = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=60)


def counts_of(values):
    return torch.bincount(BINS.numbers_of(torch.tensor(values)), minlength=len(BINS))


@given(NUMBERS, st.sampled_from([0.05, 0.5, 0.95]))
def test_quantiles_are_exact_to_half_a_bin(numbers, fraction):
    (found,) = BINS.quantiles(counts_of(numbers), [fraction]).tolist()
    # Half a number less or more, because a product with a fraction is rounded.
    sides = [max(0.0, fraction - 1e-12), min(1.0, fraction + 1e-12)]
    low, high = (np.quantile(numbers, side, method="inverted_cdf") for side in sides)
    assert low - 0.026 * abs(low) - 1e-6 <= found <= high + 0.026 * abs(high) + 1e-6


@pytest.mark.parametrize("count", [20, 60, 120, 140, 1000])
def test_a_fraction_of_a_whole_number_of_values_ends_with_the_last_of_them(count):
    numbers = [1.1**n for n in range(60)] + [1e6] * (count - 60) if count > 60 else [1.1**n for n in range(count)]
    (found,) = BINS.quantiles(counts_of(numbers), [0.05]).tolist()
    assert found == pytest.approx(numbers[count // 20 - 1], rel=0.026)


def test_quantiles_of_many_histograms_at_once():
    counts = torch.stack([counts_of([1.0, 2.0, 3.0]), counts_of([-5.0]), torch.zeros(len(BINS)).long()])
    found = BINS.quantiles(counts, [0.05, 0.5])
    assert found[:2].flatten().tolist() == pytest.approx([1.0, 2.0, -5.0, -5.0], rel=0.025)
    assert found[2].isnan().all()


def test_numbers_beyond_the_largest_and_nan_have_a_bin():
    found = BINS.numbers_of(torch.tensor([math.inf, -math.inf, math.nan, 1e30, 0.0]))
    assert found.equal(BINS.numbers_of(torch.tensor([1e6, -1e6, 0.0, 1e6, 0.0])))
    assert 0 <= found.min() < found.max() < len(BINS)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_the_share_of_the_largest_is_exact_to_the_width_of_a_bin(numbers, fraction):
    values = torch.tensor(numbers, dtype=torch.double)
    bins = BINS.numbers_of(values)
    sums = torch.zeros(len(BINS), dtype=torch.double).index_add_(0, bins, values)
    found = float(top_share(counts_of(numbers), sums, fraction))
    ordered, whole = sorted(numbers, reverse=True), int(fraction * len(numbers))
    rest = (fraction * len(numbers) - whole) * ordered[whole] if whole < len(numbers) else 0
    if sum(numbers):
        assert found == pytest.approx((sum(ordered[:whole]) + rest) / sum(numbers), rel=0.051, abs=1e-5 / max(numbers))
    else:
        assert math.isnan(found)
