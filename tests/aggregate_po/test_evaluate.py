"""`evaluate` of a part gives in one pass what its separate methods give, and computes nothing twice."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch

from aggregate_po import (
    Chain,
    ESSMatching,
    ImportanceWeighted,
    LagrangePenalty,
    LogPessimisticClip,
    Penalty,
    PowerMean,
    RatioMask,
    RatioVariance,
    TokenRatios,
)
from tests.aggregate_po.worked_example import LOG_RATIO, close, worked_batch, worked_tokens
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

    def closed(self, ratios):
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
    """The log ratios 0.6, -0.5, 0.2, 0.1 of a negative advantage: bounded below at -0.4, then closed above 0.5."""
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
