"""Derivatives by autograd for parts that give none, in every mode of autograd."""

from dataclasses import dataclass

import pytest
import torch

from aggregate_po import PolicyBatch, PolicyObjective, RatioTransform, StepTotals, TokenAggregator, TokenRatios
from aggregate_po.derivatives import elementwise_derivative
from aggregate_po.masked import masked_mean
from aggregate_po.transforms import PessimisticClip
from tests.aggregate_po.worked_example import LOG_RATIO, close, worked_batch
from tests.third_party import LehmerMean, Proximity, TanhLimit

USERS_OBJECTIVE = PolicyObjective(LehmerMean(2.0), TanhLimit(2.0), TanhLimit(1.0), penalties=[Proximity(0.1)])


def test_lehmer_weights_worked_by_hand():
    """p W(p) - (p - 1) W(p - 1), from the power weights at p = 2 and 1."""
    weights = LehmerMean(2.0).token_weights(TokenRatios.of(LOG_RATIO))
    close(weights, [[0.65415557, -0.01261007, 0.20925110, 0.14920338]], tolerance=2e-8)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_derivative_in_every_mode(mode):
    with mode():
        derivative = elementwise_derivative(lambda ratios: ratios.log_ratio.exp(), TokenRatios.of(LOG_RATIO))
    close(derivative, LOG_RATIO.exp(), tolerance=1e-15)
    assert not derivative.requires_grad


def test_derivative_of_a_constant_is_zero():
    tokens = TokenRatios.of(LOG_RATIO)
    assert elementwise_derivative(lambda ratios: torch.ones(1, 4), tokens).tolist() == [[0.0] * 4]
    assert elementwise_derivative(lambda ratios: ratios.advantages.requires_grad_(), tokens).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_weights_of_a_users_objective_in_every_mode(mode):
    log_probs, batch = worked_batch(-1.0)
    USERS_OBJECTIVE(log_probs, batch).backward()
    with mode():
        close(USERS_OBJECTIVE.gradient_weights(log_probs.detach(), batch).total, log_probs.grad, tolerance=1e-14)
        # A batch that was itself made in this mode.
        fresh_log_probs, fresh = (
            log_probs.detach() + 0,
            PolicyBatch(batch.old_log_probs + 0, batch.response_mask.float() + 0, batch.advantages + 0),
        )
        close(USERS_OBJECTIVE.gradient_weights(fresh_log_probs, fresh).total, log_probs.grad, tolerance=1e-14)


@dataclass(frozen=True)
class _ScaledByReward(TokenAggregator):
    """Reads a tensor of the totals next to the log ratios."""

    def log_aggregate(self, tokens):
        return masked_mean(tokens.log_ratio * tokens.totals.reward_mean, tokens.response_mask)


def test_totals_made_in_inference_mode_may_enter_a_derivative():
    with torch.inference_mode():
        totals = StepTotals(1, 4, reward_mean=torch.tensor(0.5, dtype=torch.float64))
        tokens = TokenRatios.of(LOG_RATIO + 0, totals=totals)
        close(_ScaledByReward().token_weights(tokens), [[0.125] * 4])


@dataclass(frozen=True)
class _Halfway(RatioTransform):
    """Reads the log ratio from before any transform, which is here the same tensor."""

    def __call__(self, ratios):
        return ratios.log_ratio - 0.5 * ratios.raw_log_ratio


@pytest.mark.parametrize("place", ["token_transform", "sequence_transform"])
def test_raw_log_ratio_is_a_constant_to_the_gradient(place):
    """Value and closed form must differentiate by the same variable."""
    log_probs, batch = worked_batch(1.0)
    objective = PolicyObjective(LehmerMean(1.0), **{place: _Halfway()})
    objective(log_probs, batch).backward()
    close(objective.gradient_weights(log_probs, batch).total, log_probs.grad, tolerance=1e-14)


def test_closed_forms_attach_nothing_to_the_graph():
    log_probs, batch = worked_batch(1.0)
    objective = PolicyObjective(LehmerMean(2.0), PessimisticClip(0.2, 0.2), penalties=[Proximity(0.1)])
    assert not objective.gradient_weights(log_probs, batch).total.requires_grad
