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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_completions_in_half_precision(dtype):
    """The square of a share of 1e-4 is 0 in float16, and its entropy is rounded to a sixteenth in bfloat16."""
    weights = torch.full((1, 10_000), 1e-4, dtype=dtype)
    assert effective_sample_size(weights).item() == pytest.approx(10_000, rel=1e-5)
    assert weight_entropy(weights).item() == pytest.approx(9.21034, rel=1e-5)


def test_a_number_that_is_none_is_told_and_a_batch_without_tokens_has_none():
    for measure in (effective_sample_size, weight_entropy):
        assert measure(torch.tensor([[torch.nan, 1.0], [1.0, 0.0]])).isnan().tolist() == [True, False]
        assert measure(torch.zeros(2, 0)).tolist() == [0.0, 0.0]


def test_gated_fraction_counts_response_tokens_only():
    gate = torch.tensor([[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False, False, False, False]])
    close(gated_fraction(gate, mask), [1 / 3, 1.0, 0.0])
    close(gated_fraction(gate, mask.float()), [1 / 3, 1.0, 0.0])
