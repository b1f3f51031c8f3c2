"""Weights of tokens: the worked completion, what a batch refuses, and what parts refuse it."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    Chain,
    CompletionRatio,
    ESSMatching,
    ExponentRule,
    GeometricMean,
    K2Penalty,
    LengthWeighted,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    PrefixProduct,
    Product,
    ScaledClip,
    SequenceMean,
    StaleCompletionMask,
    StepTotals,
    StraightThrough,
    TokenMean,
    TokenRatios,
)
from aggregate_po.exponents import ESSCurve
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close, worked_batch
from tests.third_party import SelfDualMean

WEIGHTS = torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64)


def weighted_tokens(weights=WEIGHTS, **changes):
    return replace(TokenRatios.of(LOG_RATIO, mean_weights=weights), **changes)


def weighted_batch(advantage=1.0, weights=WEIGHTS, **changes):
    log_probs, batch = worked_batch(advantage)
    return log_probs, replace(batch, mean_weights=weights, totals=None, **changes)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.125, 1e5])
@pytest.mark.parametrize(
    ("aggregator", "value"),
    [
        (ArithmeticMean(), 1.35351377),
        (GeometricMean(), 1.23676611),
        (PowerMean(1), 1.35351377),
        (PowerMean(0), 1.23676611),
        (PowerMean(-1), 1.10860793),
    ],
)
def test_weighted_means_of_the_worked_completion(aggregator, value, scale):
    close(aggregator.log_aggregate(weighted_tokens(scale * WEIGHTS)).exp(), [value], tolerance=1e-8)


def test_product_has_the_weights_as_exponents():
    close(Product().log_aggregate(weighted_tokens()), [4 * 0.6 - 2 * 0.5 + 0.2 + 0.1])
    close(Product().token_weights(weighted_tokens()), WEIGHTS)


def test_a_weight_of_two_is_the_token_taken_twice():
    once = weighted_tokens(torch.tensor([[2.0, 1.0, 0.0, 1.0]]))
    twice = TokenRatios.of(torch.tensor([[0.6, 0.6, -0.5, 0.1]], dtype=torch.float64))
    for aggregator in (ArithmeticMean(), PowerMean(-3), PowerMean(ESSMatching()), Product()):
        close(aggregator.log_aggregate(once), aggregator.log_aggregate(twice), tolerance=1e-9)
    assert once.lengths.tolist() == [4.0]
    assert once.totals.tokens == 4
    assert once.response_mask.tolist() == [[True, True, False, True]]


def test_effective_sample_size_counts_weights_as_tokens():
    """(4 a + 2 b + c + d)^2 / (4 a^2 + 2 b^2 + c^2 + d^2) / 8 with the ratios a to d."""
    share = ESSCurve.of(LOG_RATIO, torch.ones(1, 4, dtype=torch.bool), WEIGHTS).share(torch.ones(1).double())
    ratios = [1.8221188, 0.60653066, 1.22140276, 1.10517092]
    total = sum(weight * ratio for weight, ratio in zip((4, 2, 1, 1), ratios, strict=True))
    squares = sum(weight * ratio**2 for weight, ratio in zip((4, 2, 1, 1), ratios, strict=True))
    close(share, [total**2 / squares / 8])


def test_clipped_fraction_has_the_weights_too():
    """The first token is clipped, and has half of the weight."""
    saturated = torch.tensor([[True, False, False, False]])
    targets = []
    rule = ESSMatching(target=lambda fraction, share: targets.append(fraction) or share)
    rule(weighted_tokens(saturated=saturated))
    close(targets[0], [0.5])


# --- objectives


def test_an_objective_of_the_worked_completion():
    """GRPO without a clip and a penalty: both are means with the same weights."""
    log_probs, batch = weighted_batch(advantage=-1.0)
    objective = PolicyObjective(ArithmeticMean(), penalties=[K2Penalty(0.1, anchor="behavior")])
    shares = WEIGHTS / 8
    cost = (shares * LOG_RATIO.square() / 2).sum()
    value = objective(log_probs, batch)
    close(value, -1.35351377 - 0.1 * cost, tolerance=1e-8)
    value.backward()
    expected = -shares * LOG_RATIO.exp() - 0.1 * shares * LOG_RATIO
    close(log_probs.grad, expected)
    close(objective.gradient_weights(log_probs, batch).total, expected)
    close(objective.observed(log_probs, batch), [0.1 * cost])


def test_advantages_per_token():
    log_probs, batch = weighted_batch(advantages=torch.tensor([[1.0, -1.0, 0.5, 0.0]], dtype=torch.float64))
    expected = (WEIGHTS / 8 * batch.advantages * LOG_RATIO.exp()).sum()
    close(PolicyObjective(ArithmeticMean())(log_probs, batch), expected)


@pytest.mark.parametrize(
    ("normalizer", "weights"),
    [(SequenceMean(), [0.5, 0.5]), (TokenMean(), [0.8, 0.2]), (LengthWeighted(), [0.2, 0.05])],
)
def test_lengths_are_sums_of_weights(normalizer, weights):
    """Sums of 0.4 and 0.1; an empty completion counts in neither total."""
    mean_weights = torch.tensor([[0.1, 0.3], [0.0, 0.1], [0.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    batch = PolicyBatch(zeros, torch.ones(3, 2), torch.ones(3), mean_weights=mean_weights)
    assert (batch.totals.completions, batch.totals.tokens) == (2, pytest.approx(0.5))
    completion = PolicyObjective(GeometricMean(), normalizer=normalizer).gradient_weights(zeros, batch).completion
    close(completion, [[weight] for weight in (*weights, 0.0)])


def test_a_completion_without_weight_is_empty():
    log_probs, batch = weighted_batch(weights=torch.zeros(1, 4))
    assert not batch.response_mask.any()
    assert batch.advantages.tolist() == [0.0]
    value = PolicyObjective(PowerMean(0.5), penalties=[K2Penalty(0.1, anchor="behavior")])(log_probs, batch)
    value.backward()
    assert value == 0
    assert (log_probs.grad == 0).all()


def test_transforms_that_read_the_completion():
    tokens = weighted_tokens(advantages=torch.tensor([[-1.0]]))
    close(CompletionRatio(GeometricMean())(tokens).exp(), [[1.23676611] * 4])
    mean = (4 * 0.6 - 2 * 0.5 + 0.2 + 0.1) / 8
    assert StaleCompletionMask(-mean + 1e-9).clipped(tokens).tolist() == [[False] * 4]
    assert StaleCompletionMask(-mean - 1e-9).clipped(tokens).tolist() == [[True] * 4]
    after = tokens.after_mean(torch.zeros(1, dtype=torch.float64))
    close(ScaledClip(PessimisticClip.log(0.4, 0.3), exponent=-1).log_bounds(after)[1], [0.3 / 8])
    assert after.mean_weights is None


# --- the batch


def test_weights_are_constants_and_padding_has_none():
    weights = torch.tensor([[1.0, math.nan, -1.0], [0.0, 0.5, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = PolicyBatch(torch.zeros(2, 3), mask, torch.ones(2), mean_weights=weights)
    assert batch.mean_weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]
    assert not batch.mean_weights.requires_grad
    assert batch.response_mask.tolist() == [[True, False, False], [False, True, False]]


def test_boolean_weights_narrow_the_mask():
    _, batch = weighted_batch(weights=torch.tensor([[True, False, True, True]]))
    assert batch.mean_weights is None
    assert batch.response_mask.tolist() == [[True, False, True, True]]
    assert batch.totals.tokens == 3
    close(ArithmeticMean().log_aggregate(TokenRatios.of(LOG_RATIO, mean_weights=WEIGHTS == 4)), [0.6])


def test_weights_follow_the_batch():
    batch = PolicyBatch(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2), mean_weights=torch.arange(6).reshape(2, 3))
    part = batch.select(torch.tensor([1]), time=2)
    assert part.mean_weights.tolist() == [[3.0, 4.0]]
    assert part.totals is batch.totals
    half = batch.to(torch.bfloat16)
    assert half.mean_weights.tolist() == batch.mean_weights.tolist()
    assert half.mean_weights.dtype == torch.float32  # of sums over long completions


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf, 2e6])
def test_weights_are_numbers_from_0_to_a_million(weight):
    weights = torch.tensor([[1.0, weight, 1.0, 1.0]], dtype=torch.float64)
    for make in (
        lambda: weighted_batch(weights=weights),
        lambda: TokenRatios.of(LOG_RATIO, mean_weights=weights),
    ):
        with pytest.raises(ValueError, match=rf"^`mean_weights` has {weight} on a response token; pass weights from 0"):
            make()


def test_weights_have_the_shape_of_the_tokens():
    arguments = OLD_LOG_PROBS, torch.ones(1, 4), torch.ones(1)
    with pytest.raises(ValueError, match=r"^`mean_weights` has time=3, but `response_mask` has time=4; pass shape"):
        PolicyBatch(*arguments, mean_weights=torch.ones(1, 3))
    with pytest.raises(TypeError, match=r"^`mean_weights` is list, not a tensor"):
        PolicyBatch(*arguments, mean_weights=[[1.0] * 4])


# --- parts that would ignore weights


@dataclass(frozen=True)
class MeanRule(ExponentRule):
    """Reads tokens, and no weights."""

    def __call__(self, tokens):
        return tokens.log_ratio.detach().mean(dim=-1)


SCALED_CLIP = ScaledClip(PessimisticClip.log(0.1, 0.1), exponent=0.5)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (PolicyObjective(SelfDualMean()), r"SelfDualMean\(order=1.0\)"),
        (PolicyObjective(ArithmeticMean(), Chain([CompletionRatio(SelfDualMean())])), r"Chain\(.*SelfDualMean.*\)"),
        (PolicyObjective(ArithmeticMean(), StraightThrough(CompletionRatio(SelfDualMean()))), r"StraightThrough\(.*"),
        (PolicyObjective(ArithmeticMean(), prefix=PrefixProduct()), r"PrefixProduct\(\)"),
        (PolicyObjective(PowerMean(MeanRule())), r"PowerMean\(exponent=MeanRule\(\)\)"),
        (PolicyObjective(GeometricMean(), SCALED_CLIP), r"ScaledClip\(.*\)"),
        (PolicyObjective(GeometricMean(), Chain([StraightThrough(SCALED_CLIP)])), r"Chain\(.*ScaledClip.*\)"),
    ],
)
def test_parts_that_count_every_token_once_refuse_weights(objective, name):
    log_probs, batch = weighted_batch()
    for method in (objective, objective.gradient_weights, objective.evaluate):
        with pytest.raises(
            ValueError, match=rf"^`mean_weights` has shape \(1, 4\), but {name} counts every token once"
        ):
            method(log_probs, batch)
        method(log_probs, replace(batch, mean_weights=None))
        method(log_probs, replace(batch, mean_weights=WEIGHTS > 1))
    assert not objective.takes_mean_weights


def test_a_clip_that_follows_the_length_takes_weights_after_the_mean():
    objective = PolicyObjective(GeometricMean(), sequence_transform=SCALED_CLIP)
    assert objective.takes_mean_weights
    objective(*weighted_batch())


def test_totals_of_weights():
    totals = StepTotals.of(torch.ones(2, 4), torch.tensor([[0.5, 0.25, 0.0, 0.0], [0.0] * 4]), progress=0.5)
    assert (totals.completions, totals.tokens, totals.progress) == (1, 0.75, 0.5)
