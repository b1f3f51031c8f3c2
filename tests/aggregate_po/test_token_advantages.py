"""Advantages per token: under every mean, and that nothing which acts on completions accepts them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    LehmerMean,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    StepTotals,
    TokenAggregator,
    TokenMean,
)
from aggregate_po.recipes import dapo, gmpo, grpo, gspo, gspo_token, sapo
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close
from tests.contracts.strategies import RECIPES, assert_rows_close, batches, differentiate, generators, scale_of

ADVANTAGES = torch.tensor([[1.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
# What acts on the ratio of a completion has no advantage per token.
REFUSE_THEM = ["fspo", "gmpo_sequence_clip", "gspo", "holder_po", "luspo", "p_gspo", "real", "tic_grpo", "tpo"]
TAKES_THEM = sorted(RECIPES.keys() - set(REFUSE_THEM))


def worked(objective, advantages=ADVANTAGES):
    """Value and gradient on the completion of four tokens."""
    log_probs = (OLD_LOG_PROBS + LOG_RATIO).requires_grad_()
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), advantages)
    value = objective(log_probs, batch)
    value.backward()
    close(objective.gradient_weights(log_probs, batch).total, log_probs.grad, tolerance=1e-15)
    return value, log_probs.grad


def test_each_token_is_clipped_by_the_sign_of_its_own_advantage():
    """Ratios 1.8221, 0.6065, 1.2214, 1.1052; clipped to 1.2, 0.8, 1.2."""
    value, gradient = worked(grpo())
    close(value, (1.2 - 0.8 + 0.5 * 1.2) / 4)
    close(gradient, [[0, 0, 0, 0]])
    value, gradient = worked(grpo(1.0, 0.3))
    close(value, (1.3 - 0.60653066 + 0.5 * 1.22140276) / 4)
    close(gradient, [[0, -0.15163266, 0.15267535, 0]])


def test_tokens_of_the_sequence_ratio():
    """s = 1.10517092: the token with positive advantage is clipped at 1.0004, the one with negative is not."""
    value, gradient = worked(gspo_token())
    close(value, (1.0004 - 1.10517092 + 0.5 * 1.0004) / 4)
    close(gradient, [[0, -0.27629273, 0, 0]])


@pytest.mark.parametrize("name", TAKES_THEM)
@given(case=batches(empty_rows=False), generator=generators())
def test_weights_equal_autograd(name, case, generator):
    log_probs, batch = case
    advantages = torch.randn(log_probs.shape, generator=generator, dtype=torch.float64)
    batch = replace(batch, advantages=advantages, groups=None)
    _, gradient, weights = differentiate(RECIPES[name](), log_probs, batch)
    assert weights.advantages.shape == log_probs.shape
    assert_rows_close(weights.total, gradient, rtol=1e-9, scale=scale_of(weights))


@pytest.mark.parametrize("name", TAKES_THEM)
@given(case=batches())
def test_the_same_advantage_on_every_token_is_the_completions(name, case):
    log_probs, batch = case
    repeated = batch.advantages.unsqueeze(-1).expand_as(log_probs)
    tokens = replace(batch, advantages=repeated, groups=None)
    value, gradient, weights = differentiate(RECIPES[name](), log_probs, batch)
    token_value, token_gradient, _ = differentiate(RECIPES[name](), log_probs, tokens)
    scale = scale_of(weights)
    assert (token_value - value).abs() <= 1e-12 * (scale.sum() * log_probs.shape[1] + value.abs())
    assert_rows_close(token_gradient, gradient, rtol=1e-9, scale=scale)


@given(case=batches())
def test_token_form_of_the_sequence_ratio_is_the_sequence_form(case):
    """As long as the advantage is constant over the completion."""
    log_probs, batch = case
    value, gradient, weights = differentiate(gspo(0.2, 0.28), log_probs, batch)
    token_value, token_gradient, token_weights = differentiate(gspo_token(0.2, 0.28), log_probs, batch)
    torch.testing.assert_close(token_value, value, rtol=1e-12, atol=1e-12)
    assert_rows_close(token_gradient, gradient, rtol=1e-9, scale=scale_of(weights))
    assert torch.equal(token_weights.clipped, weights.clipped)


def test_every_recipe_takes_them_or_says_why_not():
    totals, ones = StepTotals(1, 4, 0.25, 0.5, 0.5), torch.ones(1, 4)
    batch = PolicyBatch(OLD_LOG_PROBS, ones, ADVANTAGES, totals, divergence=ones, scale=ones)
    for name in TAKES_THEM:
        assert RECIPES[name]()(OLD_LOG_PROBS + LOG_RATIO, batch).isfinite()
    for name in REFUSE_THEM:
        message = "^`advantages` has shape `batch time`, but .*; pass one advantage per completion, or "
        for method in (RECIPES[name](), RECIPES[name]().gradient_weights):
            with pytest.raises(ValueError, match=message):
                method(OLD_LOG_PROBS + LOG_RATIO, batch)


# Value of the completion times its token weights, as without advantages per token.
WEIGHTS = {
    ArithmeticMean(): [0.45552970, 0.15163266, 0.30535069, 0.27629273],
    GeometricMean(): [0.27629273] * 4,
    PowerMean(-1.0): [0.14277995, 0.42893468, 0.21300266, 0.23540434],
    LehmerMean(2.0): [0.88058879, -0.01697498, 0.28168250, 0.20084952],
}


@pytest.mark.parametrize(("aggregator", "weights"), WEIGHTS.items(), ids=map(repr, WEIGHTS))
def test_each_token_has_the_weight_of_its_completion_times_its_own_advantage(aggregator, weights):
    expected = ADVANTAGES * torch.tensor(weights).double()
    value, gradient = worked(PolicyObjective(aggregator))
    close(gradient, expected)
    close(value, expected.sum())


def test_shares_of_a_product_sum_to_one():
    """All weights are 1, and its value of 1.491824698 is shared by four."""
    value, gradient = worked(PolicyObjective(Product()))
    close(gradient, 1.491824698 * ADVANTAGES)
    close(value, 1.491824698 * 0.5 / 4)
    value, gradient = worked(PolicyObjective(Product()), 2 * torch.ones(1, 4).double())
    close(value, 2 * 1.491824698)


def test_clip_before_a_geometric_mean_looks_at_the_sign_of_each_token():
    """Log ratios 0.6, -0.5, 0.2 and 0.1 become 0.4, -0.4, 0.2 and 0.1, of mean 0.075."""
    value, gradient = worked(gmpo())
    mean = torch.tensor(0.075).double().exp()
    close(value, mean * 0.5 / 4)
    close(gradient, mean * torch.tensor([[0, 0, 0.5, 0]]) / 4)


class Differences(TokenAggregator):
    """Each odd token over the one before it, so that the weights sum to 0."""

    def log_aggregate(self, tokens):
        signs = torch.tensor([-1.0, 1.0]).double().repeat(tokens.log_ratio.shape[-1] // 2)
        return torch.where(tokens.response_mask, signs * tokens.log_ratio, 0).sum(dim=-1)


def test_tokens_count_alike_where_weights_sum_to_zero():
    value, gradient = worked(PolicyObjective(Differences()))
    magnitude = torch.tensor(-1.2).double().exp()
    close(value, magnitude * 0.5 / 4)
    close(gradient, magnitude * torch.tensor([[-1.0, -1.0, -0.5, 0.0]]))


def test_a_transform_after_the_mean_refuses_them():
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), ADVANTAGES)
    objective = PolicyObjective(ArithmeticMean(), sequence_transform=sapo().token_transform)
    with pytest.raises(
        ValueError, match=r"which `sequence_transform` SigmoidGate\(.*\) acts on, has no advantage per to"
    ):
        objective(OLD_LOG_PROBS, batch)


@given(case=batches(limit=800.0), junk=st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_padding_changes_nothing(case, junk):
    log_probs, batch = case
    mask = batch.response_mask
    advantages = torch.where(mask, batch.advantages.unsqueeze(-1) + 0.25, junk)
    tokens = PolicyBatch(batch.old_log_probs, mask, advantages, batch.totals)
    assert (tokens.advantages[~mask] == 0).all()
    value, gradient, weights = differentiate(dapo(), log_probs, tokens)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert (weights.total[~mask] == 0).all()


def test_micro_batches_add_up():
    """Two completions of lengths 1 and 3, with the totals of both."""
    generator = torch.Generator().manual_seed(0)
    log_probs, advantages = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = PolicyBatch(torch.zeros_like(log_probs), mask, advantages)
    objective = PolicyObjective(ArithmeticMean(), normalizer=TokenMean())
    whole = objective.gradient_weights(log_probs, batch).total
    close(whole, torch.where(mask, advantages * log_probs.exp() / 4, 0), tolerance=1e-15)
    for row in (slice(0, 1), slice(1, 2)):
        row_batch = PolicyBatch(batch.old_log_probs[row], mask[row], advantages[row], batch.totals)
        close(objective.gradient_weights(log_probs[row], row_batch).total, whole[row], tolerance=1e-15)


def test_value_of_a_completion_beyond_the_bound_stops_with_all_its_tokens():
    """A transform may lead beyond it; the value is then held at e^20, and no token has a gradient."""

    class Doubled(type(sapo().token_transform)):
        def __call__(self, ratios):
            return 2 * ratios.log_ratio

        def derivative(self, ratios):
            return torch.full_like(ratios.log_ratio, 2.0)

    objective = PolicyObjective(ArithmeticMean(), Doubled())
    log_probs = torch.tensor([[15.0, 1.0]], dtype=torch.float64)
    batch = PolicyBatch(torch.zeros(1, 2).double(), torch.ones(1, 2), torch.tensor([[1.0, -1.0]]).double())
    value, gradient, weights = differentiate(objective, log_probs, batch)
    torch.testing.assert_close(value, torch.tensor(20.0).double().exp(), rtol=1e-9, atol=0)
    assert gradient.tolist() == weights.total.tolist() == [[0.0, 0.0]]
    assert weights.overflow.all()
