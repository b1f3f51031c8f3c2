"""Property: closed-form gradient weights equal autograd, for every composition of the parts."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    RatioTransform,
    StepTotals,
    TokenAggregator,
    divisor,
)
from aggregate_po import recipes as published
from aggregate_po.testing.contexts import copied
from aggregate_po.transforms import OneSidedClip
from tests.contracts.strategies import (
    AGGREGATORS,
    NORMALIZERS,
    ON_BOUNDS,
    PENALTIES,
    RECIPES,
    SEQUENCE_TRANSFORMS,
    SUM_CLIP,
    TOKEN_TRANSFORMS,
    assert_rows_close,
    batches,
    differentiate,
    each_composition,
    exponents,
    generators,
    label,
    objectives,
    scale_of,
    taken,
    token_ratios,
    transitions,
)


@pytest.fixture(scope="module")
def everything():
    """One batch with every kind of row: both signs, none, empty, holes, extremes, points exactly on the bounds."""
    generator = torch.Generator().manual_seed(1)
    moderate = 0.4 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    on_bounds = torch.tensor([*ON_BOUNDS, 0.0], dtype=torch.float64)
    extremes = torch.tensor([80.0, -80.0, 25.0, -25.0, 19.0, -19.0, 0.1, 0.0, 1e-9], dtype=torch.float64)
    constant = torch.full((2, 9), 0.1, dtype=torch.float64)
    log_ratio = torch.cat([moderate, on_bounds.expand(2, 9), extremes.expand(2, 9), constant])
    mask = torch.rand(12, 9, generator=generator) < 0.7
    mask[5], mask[6:10] = False, True
    advantages = torch.tensor([1.0, -1.0, 0.7, -2.0, 0.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    totals = StepTotals(completions=20, tokens=150, progress=0.3, reward_mean=0.4, reward_std=0.3)
    zeros = torch.zeros(12, 9, dtype=torch.float64)
    ids = {"groups": torch.arange(12) % 3, "span_ids": torch.arange(9).expand(12, 9) // 5}
    steps = transitions(12, 9, generator) | {"ref_divergence": log_ratio.abs()}
    return log_ratio, PolicyBatch(zeros, mask, advantages, totals, ref_log_probs=log_ratio.flip(0) / 2, **ids, **steps)


# The factors of normalizer and penalties do not depend on the other parts, so each composition has one pair in turn.
REST = list(itertools.product(NORMALIZERS, ((), PENALTIES)))


@pytest.mark.parametrize("token_transform", TOKEN_TRANSFORMS, ids=label)
@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=label)
def test_every_composition(everything, aggregator, token_transform):
    first = AGGREGATORS.index(aggregator) + TOKEN_TRANSFORMS.index(token_transform)
    for number, sequence_transform in enumerate(SEQUENCE_TRANSFORMS, first):
        normalizer, penalties = REST[number % len(REST)]
        objective = PolicyObjective(aggregator, token_transform, sequence_transform, normalizer, penalties)
        _, gradient, weights = differentiate(objective, *everything)
        assert_rows_close(weights.total, gradient, rtol=1e-9, scale=scale_of(weights))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe(everything, recipe):
    for penalties in ((), *((penalty,) for penalty in PENALTIES)):
        _, gradient, weights = differentiate(recipe(penalties=penalties), *everything)
        assert_rows_close(weights.total, gradient, rtol=1e-9, scale=scale_of(weights))


def test_no_recipe_is_left_out():
    assert set(RECIPES) == set(published.__all__)


@given(objectives(), batches(weighted=True))
def test_closed_form_equals_autograd(objective, case):
    case = taken(objective, case)
    _, gradient, weights = differentiate(objective, *case)
    scale = scale_of(weights) + largest_costs(objective, *case, weights)
    # The logarithm of the kernel reaches -1e9, which leaves a mean of its values seven digits.
    rtol = 1e-6 if "GammaKernel" in repr(objective) else 1e-9
    assert_rows_close(weights.total, gradient, rtol, scale)


def largest_costs(objective, log_probs, batch, weights):
    """Largest share of a cost in each completion, 1 added: a slope may be a small difference of costs, or from 1."""
    counts = batch.response_mask if batch.mean_weights is None else batch.mean_weights
    shares = weights.completion * counts / divisor(counts.sum(dim=-1, keepdim=True))
    largest = torch.zeros_like(weights.completion)
    for penalty in objective.penalties:
        costs = torch.where(batch.response_mask, penalty.token_costs(log_probs.detach(), batch).abs() + 1, 0)
        largest = largest + (shares * costs).amax(dim=-1, keepdim=True)
    return largest


@given(exponents(), batches(weighted=True))
def test_closed_form_equals_autograd_for_every_exponent(exponent, case):
    _, gradient, weights = differentiate(PolicyObjective(PowerMean(exponent)), *case)
    assert_rows_close(weights.total, gradient, rtol=1e-9, scale=scale_of(weights))


@given(token_ratios(weighted=True), exponents())
def test_default_token_weights_equal_the_closed_form_for_every_exponent(tokens, exponent):
    mean = PowerMean(exponent)
    by_autograd = TokenAggregator.token_weights(mean, tokens)
    assert_rows_close(mean.token_weights(tokens), by_autograd, rtol=1e-9, scale=1.0)


@pytest.mark.parametrize("aggregator", [ArithmeticMean, GeometricMean, PowerMean, Product])
def test_closed_forms_are_there_to_be_compared(aggregator):
    assert aggregator.token_weights is not TokenAggregator.token_weights


CLIPS = [part for part in TOKEN_TRANSFORMS if isinstance(part, OneSidedClip)]


@given(token_ratios(), st.sampled_from(["on the upper bound", "on the lower bound", "anywhere"]))
def test_default_derivative_equals_that_of_a_clip_after_the_mean(tokens, where):
    for clip in (*CLIPS, PessimisticClip(3e-4, 4e-4), SUM_CLIP):
        after = tokens.after_mean(tokens.log_ratio[:, 0])
        if where != "anywhere":
            bound = clip.log_bounds(after)[where == "on the upper bound"]
            after = tokens.after_mean(torch.zeros_like(after.log_ratio) + bound)
        assert torch.equal(clip.derivative(after), RatioTransform.derivative(clip, after))
        assert torch.equal(clip.saturated(after), RatioTransform.saturated(clip, after))


@each_composition
@given(case=batches(weighted=True))
def test_evaluate_gives_what_the_separate_methods_give(objective, case):
    """Bit for bit, in the gradient of the value too."""
    log_probs, batch = taken(objective, case)
    evaluated = objective.evaluate(log_probs, batch)
    value, gradient, weights = differentiate(objective, log_probs, batch)
    assert torch.equal(evaluated.value, value)
    assert torch.equal(torch.autograd.grad(evaluated.value, log_probs)[0], gradient)
    assert all(torch.equal(getattr(evaluated.weights, name), factor) for name, factor in vars(weights).items())
    assert torch.equal(evaluated.observed, objective.observed(log_probs, batch))


@each_composition
@given(case=batches(weighted=True))
def test_no_advantage_no_gradient(objective, case):
    if objective.group_objective is not None:
        return  # what a group without advantages is worth, it says itself
    log_probs, batch = taken(objective, case)
    parts = {name: part for name, part in vars(objective).items() if name != "penalties"}
    objective = PolicyObjective(**parts)
    idle = replace(batch, advantages=torch.zeros_like(batch.advantages))
    value, gradient, weights = differentiate(objective, log_probs, idle)
    assert value == 0
    assert (gradient == 0).all()
    assert (weights.total == 0).all()


@each_composition
@given(case=batches(), generator=generators())
def test_weights_of_0_and_1_equal_a_mask(objective, case, generator):
    """Bit for bit: what a mask can say, weights say in the same way."""
    log_probs, batch = taken(objective, case)
    kept = torch.rand(log_probs.shape, generator=generator) < 0.6
    parts = {**vars(batch), "totals": None, "mean_weights": kept.double() if objective.takes_mean_weights else kept}
    weighted, masked = (
        PolicyBatch(**parts),
        PolicyBatch(**{**parts, "mean_weights": None, "response_mask": kept & batch.response_mask}),
    )
    totals = {"reward_mean": 0.4, "reward_std": 0.3, "progress": 0.25}
    weighted, masked = (replace(part, totals=replace(part.totals, **totals)) for part in (weighted, masked))
    of_weighted, of_masked = (differentiate(objective, log_probs, part) for part in (weighted, masked))
    assert torch.equal(of_weighted[0], of_masked[0])
    assert torch.equal(of_weighted[1], of_masked[1])
    assert all(torch.equal(getattr(of_weighted[2], name), factor) for name, factor in vars(of_masked[2]).items())


@each_composition
@given(case=batches(weighted=True))
def test_weights_are_the_same_in_inference_mode(objective, case):
    log_probs, batch = taken(objective, case)
    expected = objective.gradient_weights(log_probs, batch).total
    with torch.inference_mode():
        made_inside = copied(batch)
        actual = objective.gradient_weights(log_probs + 0, made_inside).total
    assert torch.equal(actual, expected)
