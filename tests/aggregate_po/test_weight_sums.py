"""Diagnostics of a step as sums: the same from any split into micro-batches and ranks, with one collective."""

import math

import pytest
import torch

from aggregate_po import GradientWeightSums, PolicyBatch, StepTotals
from aggregate_po.recipes import gmpo, grpo, pmpo


def step(rows=slice(None)):
    """Log-probabilities and a batch of six completions, one of them empty, with the totals of all."""
    generator = torch.Generator().manual_seed(0)
    log_probs = 0.4 * torch.randn(6, 5, generator=generator).double()
    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[4] = False
    advantages = torch.tensor([1.0, -1.0, 0.5, -2.0, 1.0, 0.0]).double()
    return log_probs[rows], PolicyBatch(torch.zeros(6, 5).double(), mask, advantages).select(rows)


def sums_of(objective, rows=slice(None)):
    log_probs, batch = step(rows)
    evaluated = objective.evaluate(log_probs, batch)
    return GradientWeightSums.of(evaluated.weights, log_probs, batch, evaluated.exponents)


@pytest.mark.parametrize("objective", [grpo(), gmpo(), pmpo()], ids=["grpo", "gmpo", "pmpo"])
def test_micro_batches_and_ranks_add_up_to_the_step(objective):
    whole, metrics = sums_of(objective), sums_of(objective).metrics()
    one, other = sums_of(objective, slice(0, 2)) + sums_of(objective, slice(4, 5)), sums_of(objective, slice(2, 4))
    other += sums_of(objective, slice(5, 6))
    for added in (one + other, GradientWeightSums.none() + one + other):
        torch.testing.assert_close(added.metrics(), metrics)
    rows = []

    def gather(row):
        rows.append(row)
        return torch.cat([row, torch.cat([other.sums, other.minima]).unsqueeze(0)])

    torch.testing.assert_close(one.over_ranks(gather).metrics(), metrics)
    assert [row.shape for row in rows] == [(1, len(whole.sums) + len(whole.minima))]
    assert ("exponent/mean" in metrics) == (objective.evaluate(*step()).exponents is not None)


def test_values_of_the_step():
    metrics = sums_of(grpo()).metrics()
    log_probs, batch = step()
    ratios = log_probs[batch.response_mask].exp()
    found = [float(metrics[f"ratio/{name}"]) for name in ("min", "max", "mean")]
    assert found == pytest.approx([float(ratios.min()), float(ratios.max()), float(ratios.mean())])
    clipped = grpo().gradient_weights(log_probs, batch).clipped.sum() / batch.response_mask.sum()
    assert float(metrics["clip_ratio/region_mean"]) == pytest.approx(float(clipped))
    assert clipped > 0.1


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("objective", [grpo(), pmpo()], ids=["grpo", "pmpo"])
def test_an_empty_batch_adds_nothing(objective, shape):
    log_probs = torch.zeros(shape).double()
    batch = PolicyBatch(log_probs, torch.ones(shape), torch.ones(shape[0]).double(), StepTotals(1, 1))
    evaluated = objective.evaluate(log_probs, batch)
    empty = GradientWeightSums.of(evaluated.weights, log_probs, batch, evaluated.exponents)
    assert math.isnan(empty.metrics()["ratio/max"])
    torch.testing.assert_close((sums_of(objective) + empty).metrics(), sums_of(objective).metrics())


def test_nothing_counted_is_not_a_number():
    assert all(math.isnan(value) for value in GradientWeightSums.none().metrics().values())
