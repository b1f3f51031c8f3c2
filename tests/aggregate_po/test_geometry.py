"""Effective sample size, entropy and gated fraction, on the power weights of the worked completion."""

import pytest
import torch

from aggregate_po import PowerMean, TokenRatios, effective_sample_size, gated_fraction, weight_entropy
from tests.aggregate_po.worked_example import LOG_RATIO, close

# exponent, power weights, effective sample size, entropy
POWER_WEIGHTS = [
    (-2.0, [0.06680546, 0.60292018, 0.14867829, 0.18159607], 2.36374163, 1.07900735),
    (-1.0, [0.13996365, 0.42047406, 0.20880124, 0.23076105], 3.41021230, 1.30495002),
    (0.0, [0.25, 0.25, 0.25, 0.25], 4.0, 1.38629436),
    (0.5, [0.31501209, 0.18174616, 0.25791008, 0.24533166], 3.86145828, 1.36801959),
    (1.0, [0.38318261, 0.12755041, 0.25685498, 0.23241200], 3.53247249, 1.31849707),
    (2.0, [0.51866909, 0.05747017, 0.23305304, 0.19080769], 2.75450419, 1.16017370),
]


@pytest.mark.parametrize(("exponent", "weights", "ess", "entropy"), POWER_WEIGHTS, ids=lambda value: str(value)[:4])
def test_power_weights_and_their_geometry(exponent, weights, ess, entropy):
    actual = PowerMean(exponent).token_weights(TokenRatios.of(LOG_RATIO))
    close(actual, [weights])
    close(effective_sample_size(actual), [ess])
    close(weight_entropy(actual), [entropy])


@pytest.mark.parametrize(
    ("exponent", "proxy"), [(2.0, 0.58097786), (1.0, 0.40007649), (0.0, 0.30535069), (-2.0, 0.37534041)]
)
def test_variance_proxy_of_the_gradient(exponent, proxy):
    """Squared value over the effective sample size, the second moment of orthogonal token gradients."""
    mean, tokens = PowerMean(exponent), TokenRatios.of(LOG_RATIO)
    squared_value = (2 * mean.log_aggregate(tokens)).exp()
    close(squared_value / effective_sample_size(mean.token_weights(tokens)), [proxy])


@pytest.mark.parametrize("scale", [1e-309, 1e-160, -3.0, 1e160, 4e307])
def test_scale_and_sign_do_not_matter(scale):
    """Not even where the sum, or a square, would leave the range of the numbers."""
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    close(effective_sample_size(scale * weights), [1 / 0.3])
    close(weight_entropy(scale * weights), [1.27985423])


def test_signs_may_be_mixed():
    weights = torch.tensor([[0.1, -0.2, 0.3, -0.4]], dtype=torch.float64)
    close(effective_sample_size(weights), [1 / 0.3])
    close(weight_entropy(weights), [1.27985423])


def test_one_token_and_no_token():
    weights = torch.tensor([[0.0, 7.0, 0.0], [0.0, 0.0, 0.0]])
    assert effective_sample_size(weights).tolist() == [1.0, 0.0]
    assert weight_entropy(weights).tolist() == [0.0, 0.0]


def test_gated_fraction_counts_response_tokens_only():
    gate = torch.tensor([[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False, False, False, False]])
    close(gated_fraction(gate, mask), [1 / 3, 1.0, 0.0])
    close(gated_fraction(gate, mask.float()), [1 / 3, 1.0, 0.0])
