"""Effective sample size, entropy and gated fraction of any weights."""

import pytest
import torch

from aggregate_po import effective_sample_size, gated_fraction, weight_entropy
from tests.aggregate_po.worked_example import close


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
