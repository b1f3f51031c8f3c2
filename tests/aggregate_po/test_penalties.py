"""Penalties on two tokens worked by hand."""

import math

import pytest
import torch

from aggregate_po import (
    AdvantageWeighted,
    EntropyBonus,
    GeometricMean,
    ImportanceWeighted,
    K1Penalty,
    K2Penalty,
    K3Penalty,
    LagrangePenalty,
    Penalty,
    PolicyBatch,
    PolicyObjective,
    RatioVariance,
    TokenMean,
)
from aggregate_po.recipes import grpo
from tests.aggregate_po.worked_example import close

OLD = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
# log pi - log ref = 0.5 and -0.5
REFERENCE_GAP = torch.tensor([[0.5, -0.5]], dtype=torch.float64)


def penalized(penalty, log_probs, ref_log_probs=None):
    """Value and gradient of a penalty alone: advantage zero, one completion of two tokens."""
    batch = PolicyBatch(OLD, torch.ones(1, 2), torch.zeros(1).double(), ref_log_probs=ref_log_probs)
    objective = PolicyObjective(GeometricMean(), penalties=[penalty])
    inputs = log_probs.clone().requires_grad_()
    value = objective(inputs, batch)
    value.backward()
    weights = objective.gradient_weights(log_probs, batch)
    close(weights.total, inputs.grad, tolerance=1e-15)
    assert torch.equal(weights.total, weights.penalty)
    return value, inputs.grad


@pytest.mark.parametrize(
    ("penalty", "costs", "slopes"),
    [
        (K1Penalty(0.1), [0.5, -0.5], [1.0, 1.0]),
        (K2Penalty(0.1), [0.125, 0.125], [0.5, -0.5]),
        (K3Penalty(0.1), [0.10653066, 0.14872127], [0.39346934, -0.64872127]),
    ],
    ids=["k1", "k2", "k3"],
)
def test_kl_estimates(penalty, costs, slopes):
    value, gradient = penalized(penalty, OLD, OLD - REFERENCE_GAP)
    close(value, -0.1 * sum(costs) / 2)
    close(gradient, [[-0.1 * slope / 2 for slope in slopes]])


def test_entropy_bonus():
    """Ratios 1/2 and 1: entropy terms -r log pi = 0.69314718 twice, slopes r (log pi + 1)."""
    value, gradient = penalized(EntropyBonus(0.1), torch.tensor([[0.25, 0.5]], dtype=torch.float64).log())
    close(value, 0.1 * math.log(2))
    close(gradient, [[0.1 * 0.19314718 / 2, -0.1 * 0.30685282 / 2]])


def test_entropy_bonus_estimates_the_entropy_of_the_trained_policy():
    """Value and gradient equal those of the entropy in expectation over all tokens of the behavior policy."""
    behavior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    logits = torch.tensor([0.4, -1.0, 0.1], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(dim=0)
    batch = PolicyBatch(behavior.log().unsqueeze(0), torch.ones(1, 3), torch.zeros(1).double())
    costs = EntropyBonus(1.0).token_costs(log_probs.unsqueeze(0), batch)
    expectation = -(behavior * costs).sum()
    entropy = torch.special.entr(log_probs.exp()).sum()
    close(expectation, entropy, tolerance=1e-14)
    (estimated,) = torch.autograd.grad(expectation, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(entropy, logits)
    close(estimated, exact, tolerance=1e-14)


def test_importance_weighted_k3_estimates_the_divergence_in_value_and_gradient():
    """Over all tokens of another behavior policy; bare k3 has neither, off policy."""
    behavior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    reference = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logits = torch.tensor([0.4, -1.0, 0.1], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(dim=0)
    old, ref = behavior.log().unsqueeze(0), reference.log().unsqueeze(0)
    batch = PolicyBatch(old, torch.ones(1, 3), torch.zeros(1).double(), ref_log_probs=ref)
    divergence = (log_probs.exp() * (log_probs - reference.log())).sum()
    (exact,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    for penalty, unbiased in ((ImportanceWeighted(K3Penalty(1.0)), True), (K3Penalty(1.0), False)):
        expectation = (behavior * penalty.token_costs(log_probs.unsqueeze(0), batch)).sum()
        (estimated,) = torch.autograd.grad(expectation, logits, retain_graph=True)
        assert torch.allclose(expectation, divergence, rtol=0, atol=1e-14) == unbiased
        assert torch.allclose(estimated, exact, rtol=0, atol=1e-14) == unbiased


@pytest.mark.parametrize("outer", [ImportanceWeighted, AdvantageWeighted, lambda cost: LagrangePenalty(cost, 0.1, 1.0)])
def test_a_cost_that_adapts_is_refused_inside_another_penalty(outer):
    inner = LagrangePenalty(RatioVariance(), bound=1e-3, step_size=1.0)
    with pytest.raises(ValueError, match=r"^`cost` is LagrangePenalty\(.*; pass a cost that does not adapt"):
        outer(inner)


def test_a_weighted_cost_adapts_a_multiplier_around_it():
    penalty = LagrangePenalty(AdvantageWeighted(RatioVariance()), bound=1e-3, step_size=1.0)
    objective = PolicyObjective(GeometricMean(), penalties=[penalty])
    batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
    objective.adapt(objective.observed(torch.full((1, 2), 0.5), batch).tolist())
    assert penalty.multiplier > 0.1


def test_importance_weighting_takes_a_penalty():
    assert ImportanceWeighted(K3Penalty(0.1)).needs_reference
    with pytest.raises(TypeError, match=r"^`cost` is 0.1; pass an instance of a subclass of aggregate_po.Penalty"):
        ImportanceWeighted(0.1)


def test_k3_is_accurate_near_the_reference():
    """Near the reference, k3 is half the squared gap, which a difference of exponentials would lose."""
    reference = torch.zeros(1, 2, dtype=torch.float64)
    batch = PolicyBatch(reference, torch.ones(1, 2), torch.zeros(1).double(), ref_log_probs=reference)
    costs = K3Penalty(1.0).token_costs(torch.tensor([[1e-6, -1e-6]], dtype=torch.float64), batch)
    close(costs / 5e-13, [[1.0, 1.0]], tolerance=1e-5)
    assert (costs >= 0).all()


def test_penalties_add_to_the_weights_of_the_objective():
    penalties = [K3Penalty(0.1), EntropyBonus(0.2)]
    batch = PolicyBatch(OLD, torch.ones(1, 2), torch.ones(1).double(), ref_log_probs=OLD - REFERENCE_GAP)
    both = grpo(penalties=penalties).gradient_weights(OLD, batch).total
    base = grpo().gradient_weights(OLD, batch).total
    parts = [penalized(penalty, OLD, OLD - REFERENCE_GAP)[1] for penalty in penalties]
    close(both, base + parts[0] + parts[1], tolerance=1e-14)


@pytest.mark.parametrize(
    ("normalizer", "weights"),
    [({}, [-0.25, -0.125]), ({"normalizer": TokenMean()}, [-1 / 6, -1 / 6])],
    ids=["every completion alike", "every token alike"],
)
def test_costs_are_averaged_as_the_normalizer_says(normalizer, weights):
    """Lengths 2 and 4, k1 with slope one: minus the completion's weight over its length."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    batch = PolicyBatch(zeros, mask, torch.zeros(2).double(), ref_log_probs=zeros)
    objective = PolicyObjective(GeometricMean(), penalties=[K1Penalty(1.0)], **normalizer)
    total = objective.gradient_weights(zeros, batch).total
    close(total, [[weights[0]] * 2 + [0] * 2, [weights[1]] * 4])


class _SquaredLogProb(Penalty):
    def token_costs(self, log_probs, batch):
        return log_probs.square()


def test_padding_does_not_reach_a_users_penalty():
    """Costs 1 and 4; the NaN between them would return in the gradient of a square, as NaN times zero."""
    log_probs = torch.tensor([[-1.0, math.nan, -2.0]], dtype=torch.float64, requires_grad=True)
    batch = PolicyBatch(log_probs.detach(), torch.tensor([[1, 0, 1]]), torch.zeros(1).double())
    objective = PolicyObjective(GeometricMean(), penalties=[_SquaredLogProb()])
    value = objective(log_probs, batch)
    value.backward()
    close(value, -2.5)
    close(log_probs.grad, [[1.0, 0.0, 2.0]])
    close(objective.gradient_weights(log_probs, batch).total, [[1.0, 0.0, 2.0]])


@pytest.mark.parametrize("penalty", [K1Penalty, K2Penalty, K3Penalty])
def test_kl_penalty_needs_a_reference_unless_its_coefficient_is_zero(penalty):
    assert grpo(penalties=[penalty(0.1)]).needs_reference
    assert not grpo(penalties=[penalty(0.0)]).needs_reference
    value, gradient = penalized(penalty(0.0), OLD)
    assert value.item() == 0
    assert gradient.tolist() == [[0.0, 0.0]]
    message = r"^`ref_log_probs` is None, but the objective has a KL penalty; pass the reference policy's"
    with pytest.raises(ValueError, match=message):
        penalized(penalty(0.1), OLD)


def test_objective_without_kl_needs_no_reference():
    assert not grpo(penalties=[EntropyBonus(0.1)]).needs_reference
    assert not grpo().needs_reference


@pytest.mark.parametrize("penalty", [K1Penalty, K2Penalty, K3Penalty, EntropyBonus])
@pytest.mark.parametrize("coefficient", [-0.1, float("nan")])
def test_coefficients_are_not_negative(penalty, coefficient):
    with pytest.raises(ValueError, match=rf"^`coefficient` is {coefficient}; pass 0 for no"):
        penalty(coefficient)
