"""Suffix weights on advantages: values worked by hand, and what an objective does with them."""

import inspect
import math

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    DiscountedFuture,
    GeometricMean,
    LabelLogistic,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PrefixProduct,
    SuffixWeight,
    TokenRatios,
)
from aggregate_po.recipes import dapo, fipo
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, assert_objective, close, worked_batch
from tests.third_party import EarlierCountsMore


def test_weights_of_the_worked_completion():
    """Sums 0.396, -0.209, 0.298, 0.1 at a half-life of 32 tokens."""
    close(DiscountedFuture()(TokenRatios.of(LOG_RATIO)), [[1.2, 1.0, 1.2, 1.10517092]])


def test_discount_is_by_the_half_life():
    """At a half-life of one token each log ratio counts half as much one token earlier."""
    unbounded = DiscountedFuture(1.0, 0.0, 100.0)
    sums = [0.6 - 0.25 + 0.05 + 0.0125, -0.5 + 0.1 + 0.025, 0.2 + 0.05, 0.1]
    close(unbounded(TokenRatios.of(LOG_RATIO)).log(), [sums], tolerance=1e-12)


def test_masked_tokens_are_neither_summed_nor_counted():
    mask = torch.tensor([[True, False, True, False, True, True, False]])
    log_ratio = torch.full((1, 7), torch.nan, dtype=torch.float64).masked_scatter(mask, LOG_RATIO)
    context = TokenRatios(**{**vars(TokenRatios.of(torch.zeros(1, 7).double(), mask)), "log_ratio": log_ratio})
    weight = DiscountedFuture(1.0, 0.0, 100.0)
    close(weight(context)[mask], weight(TokenRatios.of(LOG_RATIO))[0], tolerance=1e-14)
    assert (weight(context)[~mask] == 1).all()


def test_large_ratios_are_left_out_of_the_sums():
    """Without the first, whose ratio is 1.82, the first token's sum is that of the others at half weight."""
    weight = DiscountedFuture(1.0, 0.0, 100.0, max_ratio=1.8)
    close(weight(TokenRatios.of(LOG_RATIO))[0, 0].log(), -0.25 + 0.05 + 0.0125, tolerance=1e-12)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [1.9, 1.0]), (-1.0, [1.0, 1.0]), (0.0, [1.9, 1.0])])
def test_a_large_ratio_under_a_negative_advantage_is_never_weighted_up(advantage, expected):
    context = TokenRatios.of(torch.tensor([[1.5, 0.0]]).double(), advantages=torch.tensor([advantage]).double())
    close(DiscountedFuture(max_weight=1.9)(context), [expected])
    low = TokenRatios.of(torch.tensor([[1.5, -9.0]]).double(), advantages=torch.tensor([advantage]).double())
    close(DiscountedFuture(32.0, 0.1, 1.9)(low)[0, 0], 0.8 if advantage < 0 else 0.1)


@pytest.mark.parametrize("log_ratio", [80.0, -80.0])
def test_a_long_completion_does_not_overflow(log_ratio):
    for dtype in (torch.float32, torch.float64):
        weights = DiscountedFuture()(TokenRatios.of(torch.full((1, 4000), log_ratio, dtype=dtype)))
        assert weights.unique().tolist() == [pytest.approx(1.2 if log_ratio > 0 else 1.0)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"half_life": 0.0}, "`half_life` is 0.0; pass a positive number"),
        ({"min_weight": -0.1}, "`min_weight` is -0.1; pass 0 or more"),
        ({"max_weight": math.inf}, "`max_weight` is inf; pass a positive number, and a finite one"),
        ({"min_weight": 1.3}, "`min_weight` is 1.3 and `max_weight` 1.2; pass them in this order"),
        ({"max_ratio": 0.0}, "`max_ratio` is 0.0; pass a positive ratio"),
        ({"cap_from": math.nan}, "`cap_from` is nan; pass a positive ratio"),
    ],
)
def test_arguments_are_checked(arguments, error):
    with pytest.raises(ValueError, match=f"^{error}"):
        DiscountedFuture(**arguments)


def test_a_weight_of_a_user_is_one_short_class_with_one_method():
    assert len(inspect.getsource(EarlierCountsMore).splitlines()) <= 15
    assert [name for name, member in vars(EarlierCountsMore).items() if inspect.isfunction(member) and name[0] != "_"]
    close(EarlierCountsMore(0.5)(TokenRatios.of(LOG_RATIO)), [[1.875, 1.75, 1.5, 1.0]])


# --- in an objective -------------------------------------------------------------------------------------------------

# Weights 1.2, 1, 1.2, 1.10517092, and 1 for the first where its own ratio is above the cap; clipped at 1.28 and 0.8.
ORACLE = {
    "fipo +": (fipo(), 1, 1.20740418, [0, 0.15163266, 0.36642083, 0.30535069]),
    "fipo -": (fipo(), -1, -1.41840716, [-0.54663564, 0, -0.36642083, -0.30535069]),
    "fipo, cap 1.5, -": (fipo(max_ratio=1.5), -1, -1.24677152, [0, 0, -0.36642083, -0.30535069]),
}


@pytest.mark.parametrize(("objective", "advantage", "value", "weights"), ORACLE.values(), ids=ORACLE.keys())
def test_recipe_on_the_worked_completion(objective, advantage, value, weights):
    assert_objective(objective, advantage, value, weights)


def test_the_factor_of_the_advantage_shows_the_weight():
    log_probs, batch = worked_batch(-2.0)
    weights = fipo().gradient_weights(log_probs, batch)
    close(weights.advantages, [[-2.4, -2.0, -2.4, -2.21034184]])
    plain = dapo().gradient_weights(log_probs, batch)
    for name in ("completion", "magnitude", "concentration", "gate"):
        assert torch.equal(getattr(weights, name), getattr(plain, name))


def test_on_policy_it_is_dapo():
    _, batch = worked_batch(1.0)
    weights = fipo().gradient_weights(OLD_LOG_PROBS, batch).total
    assert torch.equal(weights, dapo().gradient_weights(OLD_LOG_PROBS, batch).total)


def test_every_token_counts_the_same():
    """On policy; lengths 1 and 4, with a hole in the longer one."""
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 1, 1]]).bool()
    batch = PolicyBatch(torch.zeros(2, 5), mask, torch.ones(2))
    close(fipo().gradient_weights(torch.zeros(2, 5), batch).total, mask / 5)


def test_advantages_per_token_are_weighted_too():
    advantages = torch.tensor([[1.0, -1.0, 0.5, 0.0]]).double()
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), advantages)
    weights = fipo().gradient_weights(OLD_LOG_PROBS + LOG_RATIO, batch)
    close(weights.advantages, advantages * torch.tensor([1.2, 1.0, 1.2, 1.10517092]).double())


def test_weights_under_a_geometric_mean():
    log_probs, batch = worked_batch(-2.0)
    objective = PolicyObjective(GeometricMean(), suffix_weight=fipo().suffix_weight)
    weights = objective.gradient_weights(log_probs, batch)
    close(weights.total, 0.27629273 * torch.tensor([[-2.4, -2.0, -2.4, -2.21034184]]))


def test_weights_read_the_tokens_and_not_the_prefixes():
    log_probs, batch = worked_batch(1.0)
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixProduct(), suffix_weight=DiscountedFuture())
    expected = torch.tensor([1.2, 1.0, 1.2, 1.10517092]) * torch.tensor([0.6, 0.1, 0.3, 0.4]).exp() / 4
    close(objective.gradient_weights(log_probs, batch).total, [expected.tolist()], tolerance=1e-6)


class ForgetsTime(SuffixWeight):
    def weights(self, tokens):
        return tokens.log_ratio.exp().sum(dim=-1)


def test_errors_name_what_is_wrong():
    with pytest.raises(TypeError, match=r"^`suffix_weight` is 2; pass an instance of a subclass of aggregate_po."):
        PolicyObjective(ArithmeticMean(), suffix_weight=2)
    with pytest.raises(ValueError, match=r"^`suffix_weight` Disc.*`sequence_transform` Pess.*pass one of the two"):
        PolicyObjective(ArithmeticMean(), sequence_transform=PessimisticClip(), suffix_weight=DiscountedFuture())
    with pytest.raises(ValueError, match=r"^`suffix_weight` Disc.*`group_objective` Label.*pass one of the two"):
        PolicyObjective(ArithmeticMean(), suffix_weight=DiscountedFuture(), group_objective=LabelLogistic())
    log_probs, batch = worked_batch(1.0)
    weighted = PolicyBatch(**{**vars(batch), "mean_weights": 2.5 * torch.ones(1, 4)})
    with pytest.raises(ValueError, match=r"^`mean_weights` has shape \(1, 4\), but DiscountedFuture"):
        fipo()(log_probs, weighted)
    with pytest.raises(ValueError, match=r"^`ForgetsTime.weights` returned shape \(1,\); return shape `batch time`"):
        PolicyObjective(ArithmeticMean(), suffix_weight=ForgetsTime())(log_probs, batch)
