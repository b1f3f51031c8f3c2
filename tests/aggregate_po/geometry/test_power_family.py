"""The power weights of the worked completion, their moments, entropy and effective sample size."""

import pytest
import torch

from aggregate_po import ESSMatching, PowerMean, TokenRatios, effective_sample_size, weight_entropy
from aggregate_po.geometry import (
    exponent_of_ess,
    log_power_ess_derivative,
    power_entropy,
    power_entropy_derivative,
    power_ess,
    power_weights,
    power_weights_derivative,
    tilted_mean,
    tilted_variance,
)
from tests.aggregate_po.worked_example import LOG_RATIO, close

ALL = torch.ones(1, 4, dtype=torch.bool)

# exponent, power weights, effective sample size, its share of the length, entropy
POWER_WEIGHTS = [
    (-2.0, [0.06680546, 0.60292018, 0.14867829, 0.18159607], 2.36374163, 0.59093541, 1.07900735),
    (-1.0, [0.13996365, 0.42047406, 0.20880124, 0.23076105], 3.41021230, 0.85255307, 1.30495002),
    (0.0, [0.25, 0.25, 0.25, 0.25], 4.0, 1.0, 1.38629436),
    (0.5, [0.31501209, 0.18174616, 0.25791008, 0.24533166], 3.86145828, 0.96536457, 1.36801959),
    (1.0, [0.38318261, 0.12755041, 0.25685498, 0.23241200], 3.53247249, 0.88311812, 1.31849707),
    (2.0, [0.51866909, 0.05747017, 0.23305304, 0.19080769], 2.75450419, 0.68862605, 1.16017370),
]

# exponent, tilted mean, tilted variance, derivatives of the entropy and of the log effective sample size, by mpmath
MOMENTS = [
    (-2.0, -0.213481551, 0.1369687312, 0.2739374623, 0.3831376349),
    (-1.0, -0.06142248223, 0.162392368, 0.162392368, 0.3041181376),
    (0.0, 0.1, 0.155, 0.0, 0.0),
    (0.5, 0.1742493539, 0.1412477759, -0.07062388794, -0.1329944044),
    (1.0, 0.2407465562, 0.1244727562, -0.1244727562, -0.2148223771),
    (2.0, 0.3481577447, 0.0911047986, -0.1822095972, -0.2636989962),
]


@pytest.mark.parametrize(
    ("exponent", "weights", "ess", "share", "entropy"), POWER_WEIGHTS, ids=lambda value: str(value)[:4]
)
def test_power_weights_and_their_geometry(exponent, weights, ess, share, entropy):
    actual = power_weights(LOG_RATIO, ALL, exponent)
    close(actual, [weights])
    close(actual, PowerMean(exponent).token_weights(TokenRatios.of(LOG_RATIO)), tolerance=1e-15)
    close(effective_sample_size(actual), [ess])
    close(power_ess(LOG_RATIO, ALL, exponent), [ess])
    close(power_ess(LOG_RATIO, ALL, exponent) / 4, [share])
    close(weight_entropy(actual), [entropy])
    close(power_entropy(LOG_RATIO, ALL, exponent), [entropy])


@pytest.mark.parametrize(("exponent", "mean", "variance", "entropy_slope", "ess_slope"), MOMENTS)
def test_moments_and_derivatives(exponent, mean, variance, entropy_slope, ess_slope):
    close(tilted_mean(LOG_RATIO, ALL, exponent), [mean], tolerance=1e-9)
    close(tilted_variance(LOG_RATIO, ALL, exponent), [variance], tolerance=1e-9)
    close(power_entropy_derivative(LOG_RATIO, ALL, exponent), [entropy_slope], tolerance=1e-9)
    close(log_power_ess_derivative(LOG_RATIO, ALL, exponent), [ess_slope], tolerance=1e-9)


def test_weights_move_to_tokens_above_the_tilted_mean():
    expected = [0.1376596713, -0.09448252679, -0.01046595599, -0.03271118856]
    close(power_weights_derivative(LOG_RATIO, ALL, 1.0), [expected], tolerance=1e-9)


def test_one_exponent_per_completion():
    exponents = torch.tensor([row[0] for row in POWER_WEIGHTS])
    rows, mask = LOG_RATIO.expand(6, 4), ALL.expand(6, 4)
    close(power_weights(rows, mask, exponents), [row[1] for row in POWER_WEIGHTS])
    close(power_ess(rows, mask, exponents), [row[2] for row in POWER_WEIGHTS])


@pytest.mark.parametrize(("share", "largest", "exponent"), [(0.95, 1.0, 0.6110222), (0.5, 8.0, 3.278897067)])
def test_exponent_of_a_share(share, largest, exponent):
    close(exponent_of_ess(LOG_RATIO, ALL, share, largest), [exponent])


def test_exponent_below_zero_by_reflection():
    close(-exponent_of_ess(-LOG_RATIO, ALL, 0.8, 8.0), [-1.196285076])


def test_shares_out_of_reach_give_the_ends():
    rows, mask = LOG_RATIO.expand(4, 4), ALL.expand(4, 4)
    shares = torch.tensor([0.1, 0.5, 1.0, 1.5])
    assert exponent_of_ess(rows, mask, shares, 2.0).tolist() == [2.0, 2.0, 0.0, 0.0]


def test_equal_ratios_and_no_token():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    assert exponent_of_ess(torch.full((3, 2), 0.25), mask, 0.9, 3.0).tolist() == [3.0, 3.0, 0.0]


def test_the_rule_of_pmpo_solves_the_same_equation():
    rule = ESSMatching(target=lambda clipped_fraction, arithmetic_ess: torch.full_like(arithmetic_ess, 0.95))
    assert torch.equal(rule(TokenRatios.of(LOG_RATIO)), exponent_of_ess(LOG_RATIO, ALL, 0.95))


@pytest.mark.parametrize("largest", [0.0, -1.0, float("inf"), float("nan")])
def test_an_interval_needs_an_upper_end(largest):
    with pytest.raises(ValueError, match="`largest` is"):
        exponent_of_ess(LOG_RATIO, ALL, 0.9, largest)
