"""Variance of the ratio as a cost, and the multiplier that enforces a bound on a cost."""

import math

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    K2Penalty,
    LagrangePenalty,
    Penalty,
    PolicyBatch,
    PolicyObjective,
    RatioVariance,
)
from aggregate_po.recipes import r2vpo
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close, worked_batch

MEAN_SQUARE = 0.22269439  # mean of (r - 1)^2 over the four tokens


def test_variance_is_the_mean_square_distance_of_the_ratio_from_one():
    log_probs, batch = worked_batch(0.0)
    objective = PolicyObjective(ArithmeticMean(), penalties=[RatioVariance(0.1)])
    close(objective(log_probs, batch), -0.1 * MEAN_SQUARE)
    ratio = LOG_RATIO.exp()
    close(objective.gradient_weights(log_probs, batch).penalty, -0.2 * (ratio - 1) * ratio / 4)
    assert not objective.needs_reference


def test_the_multiplier_climbs_while_the_cost_exceeds_its_bound_and_falls_below_it_to_zero():
    log_probs, batch = worked_batch(1.0)
    objective = r2vpo(bound=0.2, step_size=0.5, multiplier=0.1)
    (penalty,) = objective.penalties
    observed = objective.observed(log_probs, batch)
    close(observed, [MEAN_SQUARE - 0.2])
    close(objective(log_probs, batch), 1.188805784 - 0.1 * (MEAN_SQUARE - 0.2))
    objective.adapt(observed.tolist())
    assert penalty.multiplier == pytest.approx(0.1 + 0.5 * 0.02269439, abs=1e-7)
    on_policy = objective.observed(OLD_LOG_PROBS, batch)
    close(on_policy, [-0.2])
    objective.adapt(on_policy.tolist())
    assert penalty.multiplier == pytest.approx(0.1 + 0.5 * 0.02269439 - 0.1, abs=1e-7)
    objective.adapt(on_policy.tolist())
    assert penalty.multiplier == 0.0


@pytest.mark.parametrize("average", [math.nan, math.inf])
def test_an_average_that_is_no_number_does_not_end_the_constraint(average):
    penalty = LagrangePenalty(RatioVariance(1.0), bound=0.1, step_size=1.0)
    with pytest.raises(ValueError, match=rf"`mean_observed` is {average}; pass a finite average"):
        penalty.adapt(average)


def test_what_is_observed_is_the_slope_of_the_objective_in_the_multiplier():
    """So the ascent is that of the Lagrangian itself, whatever the normalizer."""
    log_probs, batch = worked_batch(1.0)
    values = [r2vpo(bound=0.05, multiplier=multiplier)(log_probs, batch) for multiplier in (0.25, 0.75)]
    close((values[0] - values[1]) / 0.5, r2vpo(bound=0.05).observed(log_probs, batch).squeeze(), tolerance=1e-12)


def test_observations_of_micro_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    batch = PolicyBatch(torch.zeros_like(log_probs), mask, torch.ones(3).double())
    objective = PolicyObjective(ArithmeticMean(), penalties=[r2vpo().penalties[0], K2Penalty(0.5, anchor="behavior")])
    whole = objective.observed(log_probs, batch)
    close(whole[0], ((log_probs.exp() - 1).square() * mask).sum(-1)[:2].div(torch.tensor([2, 4])).mean() - 0.001)
    micro_batches = [
        objective.observed(
            log_probs[row], PolicyBatch(batch.old_log_probs[row], mask[row], batch.advantages[row], batch.totals)
        )
        for row in (slice(0, 1), slice(1, 3))
    ]
    close(sum(micro_batches), whole, tolerance=1e-15)


def test_state_is_saved_and_taken_back():
    objective, other = r2vpo(multiplier=0.04), r2vpo(multiplier=0.9)
    objective.adapt([0.5])
    assert objective.state_dict() == {"penalties": [{"multiplier": 0.54}]}
    other.load_state_dict(objective.state_dict())
    assert other.penalties[0].multiplier == 0.54


def test_most_penalties_have_no_state_and_do_not_adapt():
    log_probs, batch = worked_batch(1.0)
    objective = PolicyObjective(ArithmeticMean(), penalties=[RatioVariance(0.1)])
    before = objective(log_probs, batch)
    objective.adapt([3.0])
    assert objective.state_dict() == {"penalties": [{}]}
    assert torch.equal(objective(log_probs, batch), before)
    assert PolicyObjective(ArithmeticMean()).observed(log_probs, batch).shape == (0,)


def test_a_constraint_on_a_cost_that_needs_the_reference_needs_it_too():
    assert LagrangePenalty(K2Penalty(1.0), 0.1, 1.0).needs_reference
    assert not LagrangePenalty(K2Penalty(1.0, anchor="behavior"), 0.1, 1.0).needs_reference


def test_distance_to_the_behavior_policy():
    """k2 = x^2 / 2 of the log ratios 0.6, -0.5, 0.2, 0.1, without a reference."""
    log_probs, batch = worked_batch(0.0)
    objective = PolicyObjective(ArithmeticMean(), penalties=[K2Penalty(0.5, anchor="behavior")])
    close(objective(log_probs, batch), -0.5 * (0.36 + 0.25 + 0.04 + 0.01) / 8)
    close(objective.gradient_weights(log_probs, batch).total, -0.5 * LOG_RATIO / 4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RatioVariance(-1.0), ValueError, r"^`coefficient` is -1.0; pass 0 for no penalty"),
        (lambda: LagrangePenalty(0.1, 0.1, 1.0), TypeError, r"^`cost` is 0.1; pass an instance of a subclass of aggr"),
        (lambda: LagrangePenalty(RatioVariance(), -0.1, 1.0), ValueError, r"^`bound` is -0.1; pass 0 or more"),
        (lambda: LagrangePenalty(RatioVariance(), 0.1, -1.0), ValueError, r"^`step_size` is -1.0; pass 0 or more"),
        (lambda: K2Penalty(0.1, anchor="old"), ValueError, r'^`anchor` is \'old\'; pass "reference" or "behavior"'),
    ],
)
def test_arguments_out_of_range_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_repr_shows_the_multiplier():
    assert repr(r2vpo().penalties[0]) == (
        "LagrangePenalty(cost=RatioVariance(coefficient=1.0), bound=0.001, step_size=1.0, multiplier=0.04)"
    )
    assert isinstance(r2vpo().penalties[0], Penalty)


def test_state_of_another_objective_is_refused():
    with pytest.raises(ValueError, match=r"^`state` has 0 penalties, but the objective has 1; resume with the"):
        r2vpo().load_state_dict(PolicyObjective(ArithmeticMean()).state_dict())
