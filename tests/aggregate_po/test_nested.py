"""Means over spans: worked by hand, against a plain computation, and what a batch does with spans."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from aggregate_po import (
    ArithmeticMean,
    CompletionRatio,
    ESSMatching,
    GeometricMean,
    HomogeneousMean,
    NestedMean,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    TokenCorrection,
    TokenRatios,
)
from aggregate_po.testing import AggregatorContract
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close
from tests.contracts.strategies import shared, token_ratios

SENTENCES = torch.tensor([[0, 0, 1, 1]])
OVER_SENTENCES = NestedMean(inner=GeometricMean(), outer=ArithmeticMean())


@pytest.mark.parametrize("advantage", [1, -1])
def test_sentences_of_the_worked_completion(advantage):
    """Geometric means e^0.05 and e^0.15; a token has a quarter of its sentence's."""
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), torch.tensor([advantage]).double(), span_ids=SENTENCES)
    log_probs = (OLD_LOG_PROBS + LOG_RATIO).requires_grad_()
    objective = PolicyObjective(OVER_SENTENCES)
    value = objective(log_probs, batch)
    value.backward()
    close(value, advantage * 1.10655267)
    weights = advantage * torch.tensor([[0.26281777, 0.26281777, 0.29045856, 0.29045856]], dtype=torch.float64)
    close(log_probs.grad, weights)
    close(objective.gradient_weights(log_probs, batch).total, weights)


def test_a_span_counts_once_whatever_its_length():
    """Spans of three tokens and of one: (e^0.1 + e^0.1) / 2, with weights 1/6 and 1/2."""
    tokens = TokenRatios.of(LOG_RATIO, span_ids=torch.tensor([[7, 7, 7, 3]]))
    close(OVER_SENTENCES.log_aggregate(tokens), [0.1], tolerance=1e-15)
    close(OVER_SENTENCES.token_weights(tokens), [[1 / 6, 1 / 6, 1 / 6, 1 / 2]], tolerance=1e-15)


def test_weights_count_tokens_in_their_span_only():
    """Of the first span (3 * 0.6 - 0.5) / 4; of the second 0.1 alone. Each span counts once."""
    weights = torch.tensor([[3.0, 1.0, 0.0, 7.0]], dtype=torch.float64)
    tokens = TokenRatios.of(LOG_RATIO, mean_weights=weights, span_ids=SENTENCES)
    nested = NestedMean(GeometricMean(), GeometricMean())
    assert nested.takes_mean_weights
    close(nested.log_aggregate(tokens), [(1.3 / 4 + 0.1) / 2], tolerance=1e-14)
    close(nested.token_weights(tokens), [[0.375, 0.125, 0, 0.5]], tolerance=1e-14)


def test_a_product_of_each_sentence_may_be_averaged():
    """e^0.1 and e^0.3, of which the harmonic mean is 2 / (e^-0.1 + e^-0.3)."""
    tokens = TokenRatios.of(LOG_RATIO, span_ids=SENTENCES)
    mean = NestedMean(Product(), PowerMean(-1.0)).log_aggregate(tokens)
    close(mean.exp(), [2 / (math.exp(-0.1) + math.exp(-0.3))], tolerance=1e-14)


@given(token_ratios())
def test_spans_of_one_token_and_of_all(tokens):
    every = replace(tokens, span_ids=torch.arange(tokens.log_ratio.shape[1]).expand_as(tokens.log_ratio))
    whole = replace(tokens, span_ids=torch.full_like(every.span_ids, 5))
    nested = NestedMean(PowerMean(2.0), PowerMean(-1.0))
    for context, mean in ((every, nested.outer), (whole, nested.inner)):
        close(nested.log_aggregate(context), mean.log_aggregate(tokens), tolerance=1e-12)
        close(nested.token_weights(context), mean.token_weights(tokens), tolerance=1e-12)


@given(token_ratios())
def test_a_computation_span_by_span(tokens):
    nested = NestedMean(PowerMean(0.5), PowerMean(2.0))
    values, weights = nested.log_aggregate(tokens), nested.token_weights(tokens)
    for row, mask in enumerate(tokens.response_mask):
        x, spans = tokens.log_ratio[row][mask], tokens.span_ids[row][mask]
        members = [spans == number for number in spans.unique()]
        inner = [2 * (torch.logsumexp(x[member] / 2, 0) - math.log(member.sum())) for member in members]
        if not members:
            assert values[row] == 0
            continue
        each = torch.stack(inner)
        close(values[row], (torch.logsumexp(2 * each, 0) - math.log(len(each))) / 2, tolerance=1e-10)
        expected = torch.zeros_like(x)
        for share, member in zip((2 * each).softmax(0), members, strict=True):
            expected[member] = share * (x[member] / 2).softmax(0)
        close(weights[row][mask], expected, tolerance=1e-10)


@given(token_ratios())
def test_the_numbers_of_spans_are_names_only(tokens):
    renamed = replace(tokens, span_ids=2**62 - 3 * tokens.span_ids)
    close(OVER_SENTENCES.log_aggregate(renamed), OVER_SENTENCES.log_aggregate(tokens), tolerance=1e-12)
    close(OVER_SENTENCES.token_weights(renamed), OVER_SENTENCES.token_weights(tokens), tolerance=1e-12)


class _HomogeneousNested(NestedMean, HomogeneousMean):
    """A mean of means, whose further properties the contract checks."""


class TestAMeanOfMeans(AggregatorContract):
    aggregator = _HomogeneousNested(PowerMean(2.0), GeometricMean())
    settings = shared


def test_an_exponent_rule_of_the_outer_mean_sees_spans():
    """Log means 0.05 and 0.15 of which none is clipped, since no span has all tokens clipped."""
    saturated = torch.tensor([[True, False, False, True]])
    tokens = replace(TokenRatios.of(LOG_RATIO, span_ids=SENTENCES), saturated=saturated)
    nested = NestedMean(GeometricMean(), PowerMean(ESSMatching()))
    evaluated = nested.evaluate(tokens)
    assert evaluated.exponents.tolist() == [1.0]
    close(evaluated.log_aggregate.exp(), [1.10655267])
    half = replace(tokens, saturated=torch.tensor([[True, True, False, False]]))
    spans = replace(TokenRatios.of(torch.tensor([[0.05, 0.15]]).double()), saturated=torch.tensor([[True, False]]))
    close(nested.evaluate(half).exponents, nested.outer.exponents(spans), tolerance=1e-6)
    assert nested.evaluate(half).exponents < 1


def test_an_exponent_is_chosen_without_the_sampler_correction():
    sampler = OLD_LOG_PROBS - torch.tensor([[0.3, -0.2, 1.5, 0.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    weights = TokenCorrection(5.0)(OLD_LOG_PROBS, sampler, mask)
    tokens = TokenRatios.of(LOG_RATIO, span_ids=SENTENCES)
    nested = NestedMean(GeometricMean(), PowerMean(ESSMatching(target=lambda clipped, ess: ess.clamp(min=0.9999))))
    plain, corrected = nested.evaluate(tokens), nested.evaluate(tokens.corrected(weights))
    assert 0 < plain.exponents < 1
    close(corrected.exponents, plain.exponents, tolerance=1e-12)
    assert corrected.log_aggregate > plain.log_aggregate


def test_every_token_may_have_the_mean_of_its_completion():
    tokens = TokenRatios.of(LOG_RATIO, span_ids=SENTENCES)
    close(CompletionRatio(OVER_SENTENCES)(tokens).exp(), [[1.10655267] * 4])


def batch_of_spans(span_ids, mask=None):
    mask = torch.ones(2, 3) if mask is None else mask
    return PolicyBatch(torch.zeros(2, 3), mask, torch.ones(2), span_ids=span_ids)


def test_a_batch_carries_spans():
    spans = torch.tensor([[300, 301, 301], [0, 0, 5]])
    batch = batch_of_spans(spans)
    assert torch.equal(batch.to(torch.bfloat16).span_ids, spans)  # which has no 301
    assert batch.select(slice(1, 2), time=2).span_ids.tolist() == [[0, 0]]
    padded = batch_of_spans(torch.tensor([[1, 1, -7], [2, 3, 4]]), torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert padded.span_ids.tolist() == [[1, 1, 0], [2, 3, 4]]


@pytest.mark.parametrize(
    ("span_ids", "message"),
    [
        (torch.zeros(2, 3), r"^`span_ids` has dtype torch.float32; pass integers, 0 or more"),
        (torch.ones(2, 3, dtype=torch.bool), r"^`span_ids` has dtype torch.bool; pass integers, 0 or more"),
        (torch.tensor([[0, 1, -2], [0, 0, 0]]), r"^`span_ids` has -2 on a response token; pass integers, 0 or more"),
        (torch.zeros(2, 4, dtype=torch.long), r"^`span_ids` has time=4, but `response_mask` has time=3; pass shape"),
    ],
    ids=["float", "bool", "negative", "wide"],
)
def test_spans_are_numbered_per_token(span_ids, message):
    with pytest.raises(ValueError, match=message):
        batch_of_spans(span_ids)


def test_a_mean_over_spans_needs_spans():
    objective = PolicyObjective(OVER_SENTENCES)
    message = r"^`span_ids` is None, but NestedMean aggregates spans; pass the number of each token's span"
    with pytest.raises(ValueError, match=message):
        objective(torch.zeros(2, 3), batch_of_spans(None))


def test_parts_are_aggregators():
    with pytest.raises(TypeError, match=r"^`outer` is 2.0; pass an instance of a subclass of aggregate_po.TokenAggr"):
        NestedMean(GeometricMean(), 2.0)


def test_a_batch_without_spans_or_tokens():
    for mask in (torch.zeros(2, 3), torch.zeros(2, 0), torch.zeros(0, 3)):
        tokens = TokenRatios.of(torch.zeros_like(mask), mask, span_ids=torch.zeros_like(mask, dtype=torch.long))
        assert OVER_SENTENCES.log_aggregate(tokens).tolist() == [0.0] * len(mask)
        assert OVER_SENTENCES.token_weights(tokens).shape == mask.shape
