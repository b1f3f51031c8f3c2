"""Recipes over denoising steps, and the divergence from a reference, worked by hand."""

import pytest
import torch

from aggregate_po import ArithmeticMean, GaussianKL, LagrangePenalty, PolicyBatch, PolicyObjective
from aggregate_po.recipes import flow_dppo, flow_grpo, grpo_guard
from tests.aggregate_po.worked_example import assert_objective, close

GUARDED = {"divergence": [0.0125, 0.0125], "scale": [0.5, 0.5], "mean_weights": [10.0, 5.0]}
MASKED = {"divergence": [0.0125, 0.99e-5]}


def of_steps(log_ratio, advantage, **fields):
    """Log-probabilities that require gradient, and the batch of one completion of denoising steps."""
    log_probs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    optional = {name: torch.tensor([values], dtype=torch.float64) for name, values in fields.items()}
    ones, advantages = torch.ones_like(log_probs), torch.tensor([advantage], dtype=torch.float64)
    return log_probs, PolicyBatch(torch.zeros_like(log_probs).detach(), ones, advantages, **optional)


@pytest.mark.parametrize(
    ("advantage", "value", "weights"),
    [
        (1, (3 * 1.0001 + 0.60653066) / 4, [0, 0.15163266, 0, 0]),
        (
            -1,
            -(1.8221188 + 0.9999 + 1.22140276 + 1.10517092) / 4,
            [-0.4555297, 0, -0.30535069, -0.27629273],
        ),
    ],
)
def test_narrow_clip(advantage, value, weights):
    assert_objective(flow_grpo(), advantage, value, weights)


@pytest.mark.parametrize(
    ("objective", "fields", "log_ratio", "advantage", "value", "weights"),
    [
        # Normalized log ratios 0.045 and 0; e^0.045 = 1.04602786.
        (grpo_guard(2, 0.1, 0.1), GUARDED, [0.0775, -0.0125], 1, 7.7301393, [2.61506965, 1.25]),
        (grpo_guard(2), GUARDED, [0.0775, -0.0125], 1, (10.00002 + 5) / 2, [0, 1.25]),
        (grpo_guard(2), GUARDED, [0.0775, -0.0125], -1, -7.7301393, [-2.61506965, -1.25]),
        (grpo_guard(4, 0.02, 0.02), GUARDED, [0.0775, -0.0125], 1, (10.2 + 5) / 4, [0, 0.625]),
        # Ratio 1.64872127; the first step has moved too far.
        (flow_dppo(), MASKED, [0.5, 0.5], 1, 1.64872127, [0, 0.82436064]),
        (flow_dppo(), MASKED, [0.5, 0.5], -1, -1.64872127, [-0.82436064, -0.82436064]),
        (flow_dppo(0.02), MASKED, [0.5, 0.5], 1, 1.64872127, [0.82436064, 0.82436064]),
    ],
)
def test_value_and_weights(objective, fields, log_ratio, advantage, value, weights):
    log_probs, batch = of_steps(log_ratio, advantage, **fields)
    result = objective(log_probs, batch)
    result.backward()
    close(result, value)
    close(objective.gradient_weights(log_probs, batch).total, [weights])
    close(log_probs.grad, [weights])


def test_a_guard_needs_divergence_and_scale():
    log_probs, batch = of_steps([0.0, 0.0], 1.0, divergence=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"^`scale` is None, but RatioNorm reads it of each token; pass `PolicyBatch"):
        grpo_guard(10)(log_probs, batch)
    with pytest.raises(ValueError, match=r"^`length` is 0; pass"):
        grpo_guard(0)


def test_a_divergence_from_a_reference_has_a_graph():
    """The average of 0.5 and 0.1, weighted 3 to 1, is 0.4; no weight of a log-probability changes."""
    log_probs, batch = of_steps([0.3, -0.2], 1.0, mean_weights=[3.0, 1.0])
    divergence = torch.tensor([[0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    batch = PolicyBatch(**{**vars(batch), "ref_divergence": divergence})
    plain, costly = (PolicyObjective(ArithmeticMean(), penalties=costs) for costs in ((), [GaussianKL(0.04)]))
    evaluated = costly.evaluate(log_probs, batch)
    close(plain(log_probs, batch) - evaluated.value, 0.04 * 0.4)
    assert torch.equal(evaluated.weights.total, plain.gradient_weights(log_probs, batch).total)
    close(evaluated.observed, [0.4])
    evaluated.value.backward()
    close(divergence.grad, [[-0.03, -0.01]])
    close(log_probs.grad, evaluated.weights.total)


def test_a_constraint_on_the_divergence_from_a_reference():
    log_probs, batch = of_steps([0.3, -0.2], 1.0, ref_divergence=[0.5, 0.1])
    objective = PolicyObjective(ArithmeticMean(), penalties=[LagrangePenalty(GaussianKL(1.0), 0.1, 2.0)])
    objective.adapt(objective.observed(log_probs, batch).tolist())
    assert objective.penalties[0].multiplier == pytest.approx(2 * (0.3 - 0.1))


def test_what_a_reference_is_needed_for():
    log_probs, batch = of_steps([0.3], 1.0)
    assert GaussianKL(0.1).needs_reference
    assert not GaussianKL(0.0).needs_reference
    assert PolicyObjective(ArithmeticMean(), penalties=[GaussianKL(0.1)]).needs_reference
    close(GaussianKL(0.0).token_costs(log_probs, batch), [[0.0]])
    with pytest.raises(ValueError, match=r"^`ref_divergence` is None, but the objective has a GaussianKL; pass the"):
        GaussianKL(0.1).token_costs(log_probs, batch)
    with pytest.raises(ValueError, match=r"^`coefficient` is -1.0; pass 0 for no penalty"):
        GaussianKL(-1.0)
