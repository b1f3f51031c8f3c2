"""Masked reductions on three tokens, a hole, and an empty row."""

import math

import pytest
import torch

from aggregate_po.masked import masked_logsumexp, masked_mean, masked_softmax, masked_sum
from tests.aggregate_po.worked_example import close

VALUES = torch.tensor([[1.0, math.nan, 3.0, -1.0], [math.inf, math.nan, -math.inf, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[True, False, True, True], [False] * 4])


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [(masked_sum, 3.0), (masked_mean, 1.0), (masked_logsumexp, math.log(math.e + math.e**3 + 1 / math.e))],
)
def test_reductions(reduction, expected):
    close(reduction(VALUES, MASK), [expected, 0.0], tolerance=1e-14)


def test_softmax():
    exponentials = [math.e, 0.0, math.e**3, 1 / math.e]
    shares = [exponential / sum(exponentials) for exponential in exponentials]
    close(masked_softmax(VALUES, MASK), [shares, [0.0] * 4], tolerance=1e-14)


def test_logsumexp_does_not_overflow():
    values = torch.tensor([[1000.0, 1000.0, -1000.0, 5.0]])
    close(masked_logsumexp(values, torch.ones(1, 4, dtype=torch.bool)), [1000 + math.log(2)], tolerance=1e-4)


@pytest.mark.parametrize("reduction", [masked_sum, masked_mean, masked_logsumexp, masked_softmax])
def test_padding_has_no_gradient(reduction):
    """Nor is there a NaN on the way, that a later zero would hide."""
    values = VALUES.clone().requires_grad_()
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        reduction(values, MASK).square().sum().backward()
    assert torch.isfinite(values.grad).all()
    assert (values.grad[~MASK] == 0).all()
    assert (values.grad[MASK] != 0).all()
