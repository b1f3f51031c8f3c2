"""Aggregators on the worked completion, the abstract mean, and what an exponent may be."""

import math
import re

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    ESSMatching,
    GeometricMean,
    LehmerMean,
    LengthScaledProduct,
    PowerMean,
    Product,
    TokenRatios,
)
from aggregate_po.aggregators.power import log_power_mean
from tests.aggregate_po.worked_example import LOG_RATIO, close
from tests.third_party import AsinhMean


@pytest.mark.parametrize(
    ("aggregator", "value"),
    [
        (ArithmeticMean(), 1.188805784),
        (GeometricMean(), 1.105170918),
        (PowerMean(-1), 1.020121624),
        (Product(), 1.491824698),
        # sum r^2 / sum r = 6.40122382 / 4.75522314
        (LehmerMean(2.0), 1.346145835),
        # e^(0.4 / 4^0.5)
        (LengthScaledProduct(0.5), 1.221402758),
        # sinh of the mean of asinh(x): (0.56882489 - 0.48121183 + 0.19869011 + 0.09983408) / 4
        (AsinhMean(), math.exp(math.sinh(0.09653431))),
    ],
    ids=["arithmetic", "geometric", "harmonic", "product", "lehmer", "scaled", "asinh"],
)
def test_aggregate_of_the_worked_completion(aggregator, value):
    close(aggregator.log_aggregate(TokenRatios.of(LOG_RATIO)).exp(), [value], tolerance=1e-8)


@pytest.mark.parametrize(
    ("aggregator", "weights"),
    [
        (ArithmeticMean(), [0.38318261, 0.12755041, 0.25685498, 0.23241200]),
        (GeometricMean(), [0.25] * 4),
        (Product(), [1.0] * 4),
        (LengthScaledProduct(0.5), [0.5] * 4),
        # 2 r^2 / 6.40122382 - r / 4.75522314: the smallest ratio is below half the mean
        (LehmerMean(2.0), [0.65415557, -0.01261007, 0.20925110, 0.14920338]),
    ],
    ids=["arithmetic", "geometric", "product", "scaled", "lehmer"],
)
def test_weights_of_the_worked_completion(aggregator, weights):
    close(aggregator.token_weights(TokenRatios.of(LOG_RATIO)), [weights])


def test_padding_is_no_token():
    padded = torch.cat([LOG_RATIO[:, :2], torch.full((1, 3), 50.0).double(), LOG_RATIO[:, 2:]], dim=1)
    mask = torch.tensor([[True, True, False, False, False, True, True]])
    tokens = TokenRatios.of(padded, mask)
    close(ArithmeticMean().log_aggregate(tokens).exp(), [1.188805784], tolerance=1e-8)
    close(GeometricMean().token_weights(tokens), [[0.25, 0.25, 0, 0, 0, 0.25, 0.25]])


@pytest.mark.parametrize("exponent", [64.0, -64.0])
def test_large_exponents_tend_to_the_extreme_token(exponent):
    """M_p = max (share of the maximum)^(1/p), so within log(n) / |p| of the extreme."""
    log_mean = PowerMean(exponent).log_aggregate(TokenRatios.of(LOG_RATIO)).item()
    expected = (0.6 if exponent > 0 else -0.5) - math.log(4) / exponent
    assert log_mean == pytest.approx(expected, abs=1e-9)


def test_rows_may_have_exponents_of_their_own():
    exponents = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    means = log_power_mean(LOG_RATIO.expand(5, 4), torch.ones(5, 4, dtype=torch.bool), exponents).exp()
    close(means, [1.26503200, 1.18880578, 1.14763099, 1.10517092, 1.02012162])


@pytest.mark.parametrize("exponent", [math.inf, -math.inf, math.nan])
def test_exponents_are_finite(exponent):
    with pytest.raises(ValueError, match=rf"^`exponent` is {re.escape(str(exponent))}; pass a number within"):
        PowerMean(exponent)


def test_the_largest_exponents_give_the_extreme_token():
    tokens = TokenRatios.of(torch.tensor([[20.0, -20.0, 3.0]]))
    for exponent, extreme in ((1e6, 20.0), (-1e6, -20.0)):
        mean = PowerMean(exponent)
        torch.testing.assert_close(mean.log_aggregate(tokens), torch.tensor([extreme]))
        assert mean.token_weights(tokens).tolist() == [[float(extreme > 0), float(extreme < 0), 0.0]]


@pytest.mark.parametrize("order", [1e6, -1e6])
def test_the_largest_orders_of_a_lehmer_mean_give_the_extreme_token(order):
    tokens = TokenRatios.of(torch.tensor([[20.0, -20.0, 3.0]]))
    assert LehmerMean(order).log_aggregate(tokens).tolist() == [20.0 if order > 0 else -20.0]
    assert LehmerMean(order).token_weights(tokens).tolist() == [[float(order > 0), float(order < 0), 0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LehmerMean(2e6), r"^`order` is 2000000.0; pass a number within"),
        (lambda: LehmerMean(math.nan), r"^`order` is nan; pass a finite number"),
        (lambda: LengthScaledProduct(-0.1), r"^`length_exponent` is -0.1; pass a number from 0, the product, to 1"),
        (lambda: LengthScaledProduct(1.1), r"^`length_exponent` is 1.1; pass a number from 0, the product, to 1"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_without_time():
    tokens = TokenRatios.of(torch.zeros(2, 0))
    aggregators = [ArithmeticMean(), GeometricMean(), Product(), PowerMean(0.5), PowerMean(ESSMatching())]
    for aggregator in (*aggregators, LehmerMean(2.0), LengthScaledProduct(0.5)):
        assert aggregator.log_aggregate(tokens).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("exponent", ["1", None, True, torch.tensor(1.0)])
def test_exponents_are_numbers_or_rules(exponent):
    with pytest.raises(TypeError, match=r"^`exponent` is .*; pass a real number or a rule from aggregate_po.exponents"):
        PowerMean(exponent)
