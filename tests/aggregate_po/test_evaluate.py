"""`evaluate` of a part gives in one pass what its separate methods give, and computes nothing twice."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    Chain,
    ESSMatching,
    GeometricMean,
    ImportanceWeighted,
    K3Penalty,
    LagrangePenalty,
    LogPessimisticClip,
    Penalty,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    RatioMask,
    RatioVariance,
    SequenceCorrection,
    StepTotals,
    TokenCorrection,
    TokenMean,
    TokenRatios,
)
from aggregate_po.recipes import gmpo, gspo
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close, worked_batch, worked_tokens
from tests.contracts.strategies import COMPOSITIONS, transitions
from tests.third_party import LehmerMean, TanhLimit


@pytest.fixture
def calls():
    """Number of evaluations of each counted part."""
    return Counter()


@dataclass(frozen=True)
class CountedClip(LogPessimisticClip):
    name: str = "clip"
    calls: Counter = field(default_factory=Counter, repr=False)

    def log_bounds(self, ratios):
        self.calls[self.name] += 1
        return super().log_bounds(ratios)


@dataclass(frozen=True)
class CountedMask(RatioMask):
    calls: Counter

    def clipped(self, ratios):
        self.calls["mask"] += 1
        return ratios.raw_log_ratio > 0.5


@dataclass(frozen=True)
class CountedLimit(TanhLimit):
    """A transform of a user, that gives its value only."""

    calls: Counter = field(default_factory=Counter, repr=False)

    def __call__(self, ratios):
        self.calls["limit"] += 1
        return super().__call__(ratios)


def test_a_chain_walks_its_transforms_once(calls):
    """The log ratios 0.6, -0.5, 0.2, 0.1 of a negative advantage: bounded below at -0.4, then masked above 0.5."""
    chain = Chain([CountedClip(0.4, 0.4, calls=calls), CountedMask(calls)])
    context = replace(TokenRatios.of(LOG_RATIO), advantages=torch.tensor([[-1.0]]))
    result = chain.evaluate(context)
    assert calls == {"clip": 1, "mask": 1}
    close(result.value, [[0.6, -0.4, 0.2, 0.1]])
    assert result.derivative.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert result.saturated.tolist() == [[True, True, False, False]]


def test_a_transform_that_gives_its_value_only_is_called_once_more_by_autograd(calls):
    context = replace(TokenRatios.of(LOG_RATIO), log_ratio=LOG_RATIO.clone().requires_grad_())
    result = CountedLimit(2.0, calls=calls).evaluate(context)
    assert calls == {"limit": 2}
    close(result.derivative, 1 / torch.cosh(LOG_RATIO / 2).square(), tolerance=1e-14)
    (gradient,) = torch.autograd.grad(result.value.sum(), context.log_ratio)
    assert torch.equal(gradient, result.derivative)
    assert not result.derivative.requires_grad


@dataclass(frozen=True)
class CountedRule(ESSMatching):
    calls: Counter = field(default_factory=Counter, repr=False)

    def __call__(self, tokens):
        self.calls["exponent rule"] += 1
        return super().__call__(tokens)


@dataclass(frozen=True)
class CountedLehmer(LehmerMean):
    """An aggregator of a user, that gives its value only."""

    calls: Counter = field(default_factory=Counter, repr=False)

    def log_aggregate(self, tokens):
        self.calls["log_aggregate"] += 1
        return super().log_aggregate(tokens)


def test_a_power_mean_asks_its_rule_once(calls):
    """One token of four is clipped, so the exponent lies within (0, 1) and takes a bisection."""
    tokens = worked_tokens(LogPessimisticClip(0.4, 0.4), -1.0)
    mean = PowerMean(CountedRule(calls=calls))
    result = mean.evaluate(tokens)
    assert calls == {"exponent rule": 1}
    (exponent,) = mean.exponents(tokens).tolist()
    assert 0 < exponent < 1
    powers = (exponent * tokens.log_ratio).exp()
    close(result.log_aggregate, powers.mean(dim=-1).log() / exponent, tolerance=1e-14)
    close(result.token_weights, powers / powers.sum(), tolerance=1e-15)


def test_an_aggregator_that_gives_its_value_only_is_called_once_more_by_autograd(calls):
    result = CountedLehmer(2.0, calls=calls).evaluate(TokenRatios.of(LOG_RATIO))
    assert calls == {"log_aggregate": 2}
    squares, ratios = (2 * LOG_RATIO).exp(), LOG_RATIO.exp()
    close(result.log_aggregate, (squares.sum(dim=-1) / ratios.sum(dim=-1)).log(), tolerance=1e-15)
    close(result.token_weights, 2 * squares / squares.sum() - ratios / ratios.sum(), tolerance=1e-15)


@dataclass(frozen=True)
class CountedVariance(RatioVariance):
    name: str = "variance"
    calls: Counter = field(default_factory=Counter, repr=False)

    def token_costs(self, log_probs, batch):
        self.calls[f"{self.name}, costs"] += 1
        return super().token_costs(log_probs, batch)

    def token_derivatives(self, log_probs, batch):
        self.calls[f"{self.name}, derivatives"] += 1
        return super().token_derivatives(log_probs, batch)


RATIO = LOG_RATIO.exp()
VARIANCE, VARIANCE_SLOPE = (RATIO - 1).square(), 2 * (RATIO - 1) * RATIO


@pytest.mark.parametrize(
    ("wrap", "costs", "derivatives", "observed"),
    [
        (lambda cost: cost, VARIANCE, VARIANCE_SLOPE, VARIANCE),
        (
            lambda cost: LagrangePenalty(cost, bound=0.1, step_size=1.0, multiplier=0.3),
            0.3 * (VARIANCE - 0.1),
            0.3 * VARIANCE_SLOPE,
            VARIANCE - 0.1,
        ),
        (ImportanceWeighted, RATIO * VARIANCE, RATIO * (VARIANCE + VARIANCE_SLOPE), RATIO * VARIANCE),
        (
            lambda cost: LagrangePenalty(ImportanceWeighted(cost), bound=0.1, step_size=1.0, multiplier=0.3),
            0.3 * (RATIO * VARIANCE - 0.1),
            0.3 * RATIO * (VARIANCE + VARIANCE_SLOPE),
            RATIO * VARIANCE - 0.1,
        ),
    ],
    ids=["alone", "bounded", "importance weighted", "both"],
)
def test_a_cost_is_asked_once_also_inside_other_penalties(wrap, costs, derivatives, observed, calls):
    log_probs, batch = worked_batch(1.0)
    result = wrap(CountedVariance(calls=calls)).evaluate(log_probs, batch)
    assert calls == {"variance, costs": 1, "variance, derivatives": 1}
    close(result.token_costs, costs, tolerance=1e-14)
    close(result.token_derivatives, derivatives, tolerance=1e-14)
    close(result.observed, observed, tolerance=1e-14)


class DistanceObserver(Penalty):
    """Overrides `observed` alone, as a penalty that adapts may."""

    def token_costs(self, log_probs, batch):
        return 0.5 * log_probs.square()

    def observed(self, log_probs, batch):
        return log_probs.abs()


def test_a_penalty_that_overrides_what_it_observes_is_asked_for_it():
    log_probs, batch = worked_batch(1.0)
    result = DistanceObserver().evaluate(log_probs, batch)
    assert torch.equal(result.observed, log_probs.detach().abs())
    assert not result.observed.requires_grad
    assert torch.equal(result.token_derivatives, log_probs.detach())


@dataclass(frozen=True)
class CountedPowerMean(PowerMean):
    calls: Counter = field(default_factory=Counter, repr=False)

    def log_aggregate(self, tokens):
        self.calls["log_aggregate"] += 1
        return super().log_aggregate(tokens)

    def token_weights(self, tokens):
        self.calls["token_weights"] += 1
        return super().token_weights(tokens)

    def evaluate(self, tokens):
        self.calls["aggregator, both"] += 1
        return super().evaluate(tokens)


@dataclass(frozen=True)
class CountedNormalizer(TokenMean):
    calls: Counter

    def __call__(self, lengths, totals):
        self.calls["normalizer"] += 1
        return super().__call__(lengths, totals)


COSTS = ("plain", "bounded", "weighted")


def counted_objective(calls):
    """Every kind of part, each of which counts its evaluations."""
    plain, bounded, weighted = (CountedVariance(0.5, name, calls) for name in COSTS)
    return PolicyObjective(
        CountedPowerMean(CountedRule(calls=calls), calls),
        Chain([CountedClip(0.4, 0.4, "first clip", calls), CountedClip(0.3, 0.5, "second clip", calls)]),
        CountedClip(0.2, 0.2, "sequence clip", calls),
        CountedNormalizer(calls),
        [plain, LagrangePenalty(bounded, 0.1, 1.0, 0.3), ImportanceWeighted(weighted)],
    )


TRACED = {"first clip": 1, "second clip": 1, "sequence clip": 1, "exponent rule": 1, "normalizer": 1}
ALL_COSTS = {f"{name}, costs": 1 for name in COSTS}
ALL_DERIVATIVES = {f"{name}, derivatives": 1 for name in COSTS}


def test_no_part_is_evaluated_twice(calls):
    log_probs, batch = worked_batch(-1.0)
    counted_objective(calls).evaluate(log_probs, batch)
    assert calls == {**TRACED, "aggregator, both": 1, **ALL_COSTS, **ALL_DERIVATIVES}


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda objective, *case: objective(*case), {**TRACED, "log_aggregate": 1, **ALL_COSTS}),
        (lambda objective, *case: objective.observed(*case), {**TRACED, "log_aggregate": 1, **ALL_COSTS}),
        (
            lambda objective, *case: objective.gradient_weights(*case),
            # The derivative of a product has the cost in it.
            {**TRACED, "aggregator, both": 1, **ALL_DERIVATIVES, "weighted, costs": 1},
        ),
    ],
    ids=["value", "observed", "weights"],
)
def test_a_single_question_is_not_charged_for_the_others(ask, expected, calls):
    ask(counted_objective(calls), *worked_batch(-1.0))
    assert calls == expected


def random_batch(dtype, correction=None):
    """Rows of both signs, one that is empty, and one beyond every bound."""
    generator = torch.Generator().manual_seed(5)
    old = -3 * torch.rand(5, 8, generator=generator, dtype=torch.float64)
    moved = 0.4 * torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    log_probs, ref_log_probs, rollout_log_probs = (old + moved).to(dtype)
    log_probs[4] = (old[4] + torch.tensor([800.0, -800.0, 20.0, -20.0, 0.4, -0.4, 5.0, 0.0])).to(dtype)
    mask = torch.rand(5, 8, generator=generator) < 0.8
    mask[3], mask[4] = False, True
    totals = StepTotals(4, mask.sum(), 0.25, 0.5, 0.5)
    advantages, groups = torch.tensor([1.0, -1.0, 0.5, 1.0, -2.0]), torch.tensor([0, 0, 1, 1, 1])
    ids = {"groups": groups, "span_ids": torch.arange(8).expand(5, 8) // 3}
    steps = transitions(5, 8, generator) | {"ref_divergence": moved[1].square()}
    batch = PolicyBatch(old.to(dtype), mask, advantages, totals, ref_log_probs, **ids, **steps)
    if correction is not None:
        batch = replace(batch, correction=correction(batch.old_log_probs, rollout_log_probs, mask))
    return log_probs.requires_grad_(), batch


@pytest.mark.parametrize("corrected", [False, True], ids=["", "corrected"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("objective", [*COMPOSITIONS.values(), None], ids=[*COMPOSITIONS, "counted"])
def test_evaluate_is_bit_for_bit_what_the_separate_methods_give(objective, dtype, corrected, calls):
    objective = counted_objective(calls) if objective is None else objective
    if corrected and objective.group_objective is not None:
        pytest.skip("a group objective has no definition for corrections")
    per_token = objective.sequence_transform is None
    correction = TokenCorrection(1.5, 0.5, "mask") if per_token else SequenceCorrection(1.5)
    log_probs, batch = random_batch(dtype, correction if corrected else None)
    evaluated = objective.evaluate(log_probs, batch)
    value, weights = objective(log_probs, batch), objective.gradient_weights(log_probs, batch)
    pairs = [
        (evaluated.value, value),
        (torch.autograd.grad(evaluated.value, log_probs)[0], torch.autograd.grad(value, log_probs)[0]),
        (evaluated.observed, objective.observed(log_probs, batch)),
        *((getattr(evaluated.weights, name), factor) for name, factor in vars(weights).items()),
    ]
    for actual, expected in pairs:
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    assert not any(tensor.requires_grad for tensor in (*vars(evaluated.weights).values(), evaluated.observed))


def test_evaluate_of_the_worked_completion():
    """Ratios 1.8221188, 0.60653066, 1.22140276, 1.10517092; their mean is 1.188805784, the variance 0.22269439."""
    log_probs, batch = worked_batch(1.0)
    penalty = LagrangePenalty(RatioVariance(), bound=0.2, step_size=1.0, multiplier=0.1)
    evaluated = PolicyObjective(ArithmeticMean(), penalties=[penalty]).evaluate(log_probs, batch)
    close(evaluated.value, 1.188805784 - 0.1 * 0.02269439)
    close(evaluated.observed, [0.02269439])
    close(evaluated.weights.total, (RATIO - 0.1 * VARIANCE_SLOPE) / 4)
    evaluated.value.backward()
    close(log_probs.grad, (RATIO - 0.1 * VARIANCE_SLOPE) / 4, tolerance=1e-15)


def test_weights_are_detached_from_advantages_that_require_gradient():
    log_probs, batch = worked_batch(1.0)
    evaluated = gmpo().evaluate(log_probs, replace(batch, advantages=torch.ones(1, requires_grad=True)))
    assert not any(factor.requires_grad for factor in vars(evaluated.weights).values())


def test_evaluate_works_in_inference_mode():
    log_probs, batch = worked_batch(1.0)
    expected = gmpo().evaluate(log_probs, batch)
    with torch.inference_mode():
        inside = gmpo().evaluate(log_probs.detach() + 0, batch)
    assert torch.equal(inside.value, expected.value)
    assert torch.equal(inside.weights.total, expected.weights.total)


TOKEN_ADVANTAGES = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), torch.ones(1, 4).double())
NARROW = worked_batch(1.0)[1].select(slice(None), time=3)


class WideWeights(GeometricMean):
    def token_weights(self, tokens):
        return tokens.log_ratio.new_ones(1, 5)


@pytest.mark.parametrize(
    ("objective", "batch", "message"),
    [
        (gmpo(), NARROW, r"^`log_probs` has time=4, but `response_mask` has time=3"),
        (gspo(), TOKEN_ADVANTAGES, r"^`advantages` has shape `batch time`, but the ratio of a completion, which"),
        (gmpo(penalties=[K3Penalty(0.1)]), worked_batch(1.0)[1], r"^`ref_log_probs` is None, but the objective has"),
        (PolicyObjective(WideWeights()), worked_batch(1.0)[1], r"^`WideWeights.token_weights` returned shape \(1, 5\)"),
    ],
    ids=["narrow", "sequence transform", "no reference", "wide weights"],
)
def test_evaluate_raises_what_the_weights_raise(objective, batch, message):
    log_probs, _ = worked_batch(1.0)
    for ask in (objective.evaluate, objective.gradient_weights):
        with pytest.raises(ValueError, match=message):
            ask(log_probs, batch)
