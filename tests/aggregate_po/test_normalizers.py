"""Normalizers on two completions of lengths 2 and 4, whose tokens are worth 1 and 2."""

import pytest
import torch

from aggregate_po import (
    ConstantLength,
    GeometricMean,
    PolicyBatch,
    PolicyObjective,
    SequenceMean,
    StepTotals,
    TokenMean,
)
from tests.aggregate_po.worked_example import close

LENGTHS = torch.tensor([2, 4])


def two_completions(totals=None):
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    return PolicyBatch(torch.zeros(2, 4, dtype=torch.float64), mask, torch.tensor([1.0, 2.0]).double(), totals)


@pytest.mark.parametrize(
    ("normalizer", "value"),
    [
        (TokenMean(), 10 / 6),
        (SequenceMean(), 1.5),
        (ConstantLength(1), 5.0),
        (ConstantLength(4), 1.25),
    ],
    ids=["mean over tokens", "mean of means", "mean of sums", "mean of sums over the longest"],
)
def test_reductions_of_a_batch(normalizer, value):
    objective = PolicyObjective(GeometricMean(), normalizer=normalizer)
    close(objective(torch.zeros(2, 4, dtype=torch.float64), two_completions()), value, tolerance=1e-14)


@pytest.mark.parametrize(
    ("normalizer", "weights"),
    [
        (SequenceMean(), [1 / 10, 1 / 10]),
        (TokenMean(), [2 / 100, 4 / 100]),
        (ConstantLength(8), [2 / 80, 4 / 80]),
    ],
)
def test_totals_of_the_step_divide_and_not_those_of_the_micro_batch(normalizer, weights):
    for totals in (StepTotals(10, 100), StepTotals(torch.tensor(10), torch.tensor(100))):
        close(normalizer(LENGTHS, totals), weights)


@pytest.mark.parametrize("normalizer", [SequenceMean(), TokenMean(), ConstantLength(7)])
@pytest.mark.parametrize("kind", [int, float, torch.tensor, lambda count: torch.tensor(count, dtype=torch.float64)])
def test_weights_of_an_objective_in_double_precision_are_double(normalizer, kind):
    """Thirds rounded to single precision would differ by 1e-8."""
    objective = PolicyObjective(GeometricMean(), normalizer=normalizer)
    batch = two_completions(StepTotals(kind(3), kind(9)))
    completion = objective.gradient_weights(torch.zeros(2, 4, dtype=torch.float64), batch).completion
    expected = {"SequenceMean": [1 / 3, 1 / 3], "TokenMean": [2 / 9, 4 / 9], "ConstantLength": [2 / 21, 4 / 21]}
    close(completion.squeeze(-1), expected[type(normalizer).__name__], tolerance=1e-15)


@pytest.mark.parametrize("normalizer", [SequenceMean(), TokenMean(), ConstantLength(8)])
def test_step_without_any_token_divides_by_no_zero(normalizer):
    for totals in (StepTotals(0, 0), StepTotals(torch.tensor(0), torch.tensor(0))):
        assert torch.isfinite(normalizer(torch.tensor([0, 0]), totals)).all()


@pytest.mark.parametrize("length", [0, -3, float("nan")])
def test_constant_length_must_be_positive(length):
    with pytest.raises(ValueError, match=rf"`length` is {length}; pass the maximum completion length in tokens"):
        ConstantLength(length)
