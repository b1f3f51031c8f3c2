"""The bound of +-20 on log ratios and on the log value; what is counted as overflow."""

import math

import pytest
import torch

from aggregate_po import EntropyBonus, K3Penalty, PolicyBatch, PolicyObjective, Product
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.recipes import gmpo, gmpo_no_clip, gspo
from tests.aggregate_po.worked_example import close


def weights_of(objective, log_ratio, advantage=1.0):
    log_probs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    batch = PolicyBatch(torch.zeros_like(log_probs), torch.ones_like(log_probs), torch.tensor([advantage]).double())
    value = objective(log_probs, batch)
    value.backward()
    weights = objective.gradient_weights(log_probs, batch)
    close(weights.total, log_probs.grad, tolerance=1e-9)
    return value, weights


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratios_are_bounded_where_they_enter(sign):
    """exp of the mean of +-20 and 0; the token beyond the bound has no gradient, the other half of the value."""
    value, weights = weights_of(gmpo_no_clip(), [sign * 25.0, 0.0])
    close(value / math.exp(sign * 10), 1.0, tolerance=1e-12)
    close(weights.total / math.exp(sign * 10), [[0.0, 0.5]], tolerance=1e-12)
    assert weights.overflow.tolist() == [[True, False]]
    assert not weights.clipped.any()


def test_gradient_passes_exactly_on_the_bound():
    value, weights = weights_of(gmpo_no_clip(), [20.0, -20.0])
    close(value, 1.0)
    close(weights.total, [[0.5, 0.5]])
    assert not weights.overflow.any()


def test_value_is_bounded_before_it_is_exponentiated():
    value, weights = weights_of(PolicyObjective(Product()), [15.0, 15.0])
    close(value / math.exp(20), 1.0, tolerance=1e-12)
    assert weights.total.tolist() == [[0.0, 0.0]]
    assert weights.overflow.tolist() == [[True, True]]
    assert not weights.clipped.any()


def test_value_exactly_on_the_bound_has_a_gradient():
    _, weights = weights_of(PolicyObjective(Product()), [12.0, 8.0])
    close(weights.total / math.exp(20), [[1.0, 1.0]], tolerance=1e-12)
    assert not weights.overflow.any()


def test_small_values_are_not_bounded_from_below():
    value, weights = weights_of(PolicyObjective(Product()), [-18.0, -18.0])
    close(value / math.exp(-36), 1.0, tolerance=1e-12)
    close(weights.total / math.exp(-36), [[1.0, 1.0]], tolerance=1e-12)


def test_token_clip_is_counted_as_clipped():
    _, weights = weights_of(gmpo(), [0.6, -0.5, 0.2, 0.1])
    assert weights.clipped.tolist() == [[True, False, False, False]]
    assert not weights.overflow.any()
    _, weights = weights_of(gmpo(), [0.6, -0.5, 0.2, 0.1], advantage=-1.0)
    assert weights.clipped.tolist() == [[False, True, False, False]]


def test_sequence_clip_counts_all_its_tokens():
    _, weights = weights_of(gspo(), [0.6, -0.5, 0.2, 0.1])
    assert weights.clipped.tolist() == [[True] * 4]
    assert not weights.overflow.any()


def test_overflow_is_not_counted_as_clipped_as_well():
    """A clip below the bound would have stopped the token too."""
    value, weights = weights_of(gmpo(), [25.0, 0.6, 0.0, 0.0])
    close(value, math.exp(0.2))
    assert weights.overflow.tolist() == [[True, False, False, False]]
    assert weights.clipped.tolist() == [[False, True, False, False]]


def test_padding_is_neither_clipped_nor_overflow():
    log_probs = torch.tensor([[0.6, 900.0, 0.1]], dtype=torch.float64)
    batch = PolicyBatch(torch.zeros_like(log_probs), torch.tensor([[1, 0, 1]]), torch.ones(1).double())
    weights = gmpo().gradient_weights(log_probs, batch)
    assert weights.clipped.tolist() == [[True, False, False]]
    assert not weights.overflow.any()
    too_large = PolicyObjective(Product()).gradient_weights(20 * torch.ones_like(log_probs), batch)
    assert too_large.overflow.tolist() == [[True, False, True]]


@pytest.mark.parametrize("gap", [25.0, -25.0])
def test_penalties_are_bounded_too(gap):
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    batch = PolicyBatch(zeros, torch.ones(1, 1), torch.ones(1).double(), ref_log_probs=zeros)
    log_probs = torch.tensor([[gap]], dtype=torch.float64)
    bound = math.copysign(20.0, gap)
    costs = K3Penalty(1.0).token_costs(log_probs, batch)
    close(costs / (math.exp(-bound) - 1 + bound), [[1.0]], tolerance=1e-12)
    assert K3Penalty(1.0).token_derivatives(log_probs, batch).item() == 0
    # The ratio no longer moves, but the log-probability that it weighs does.
    slope = EntropyBonus(1.0).token_derivatives(log_probs, batch)
    close(slope / math.exp(bound), [[1.0]], tolerance=1e-12)


def test_half_precision_is_subtracted_in_single():
    """In bfloat16, -100 and -100.5 differ by 0.5, and exp(log_ratio) keeps seven digits."""
    pair = torch.tensor([[-100.0], [-100.5]], dtype=torch.bfloat16)
    difference = log_ratio_of(pair[:1], pair[1:], torch.ones(1, 1, dtype=torch.bool))
    assert difference.dtype == torch.float32
    assert difference.item() == 0.5
    small = log_ratio_of(torch.tensor([[0.01]]).bfloat16(), torch.tensor([[-1.0]]).bfloat16(), torch.ones(1, 1).bool())
    close(small, [[1 + torch.tensor(0.01).bfloat16().item()]])


def test_bounded_keeps_what_is_within():
    assert bounded(torch.tensor([[-800.0, -20.0, 3.5, 20.0, 800.0]])).tolist() == [[-20.0, -20.0, 3.5, 20.0, 20.0]]
