"""Objectives that combine a part under test with the parts of the library."""

from collections.abc import Iterator, Sequence

import torch

from aggregate_po.aggregators import ArithmeticMean, GeometricMean, PowerMean, Product, TokenAggregator
from aggregate_po.exponents import ESSMatching
from aggregate_po.objective import PolicyObjective
from aggregate_po.prefixes import PrefixAggregate, PrefixProduct
from aggregate_po.suffixes import SuffixWeight
from aggregate_po.testing.contexts import differentiate, scale_of
from aggregate_po.testing.reports import LawBroken, require_close, require_finite
from aggregate_po.testing.strategies import Case
from aggregate_po.transforms import GammaKernel, PessimisticClip, RatioTransform, SigmoidGate, StraightThrough

# A product of many ratios is what a transform after the mean finds hardest, an extreme exponent what a mean does.
AGGREGATORS: Sequence[TokenAggregator] = (
    ArithmeticMean(),
    GeometricMean(),
    PowerMean(-8.0),
    PowerMean(ESSMatching()),
    Product(),
)
TRANSFORMS: Sequence[RatioTransform | None] = (
    None,
    PessimisticClip(0.2, 0.28),
    SigmoidGate(),
    GammaKernel(),
    StraightThrough(GammaKernel()),
)


def aggregated_by_each(
    place: str, transform: RatioTransform, other: RatioTransform | None
) -> Iterator[PolicyObjective]:
    """Yield an objective for every aggregator, with a transform in a place and another one in the other place."""
    for aggregator in AGGREGATORS:
        if place == "token_transform":
            yield PolicyObjective(aggregator, transform, other)
        else:
            yield PolicyObjective(aggregator, other, transform)


def transformed_by_each(aggregator: TokenAggregator, before: RatioTransform | None) -> Iterator[PolicyObjective]:
    """Yield an objective for every transform after the mean, with one transform before it."""
    for after in TRANSFORMS:
        yield PolicyObjective(aggregator, before, after)


def prefixed_by_each(prefix: PrefixAggregate, before: RatioTransform | None) -> Iterator[PolicyObjective]:
    """Yield an objective for every aggregator, with a prefix aggregate and one transform of tokens."""
    for aggregator in AGGREGATORS:
        yield PolicyObjective(aggregator, before, prefix=prefix)


def weighted_by(suffix_weight: SuffixWeight, before: RatioTransform | None) -> Iterator[PolicyObjective]:
    """Yield an objective with a suffix weight and one transform of tokens, and the same on prefixes."""
    for aggregator in (ArithmeticMean(), PowerMean(-8.0)):
        for prefix in (None, PrefixProduct()):
            yield PolicyObjective(aggregator, before, prefix=prefix, suffix_weight=suffix_weight)


def require_gradients(objectives: Iterator[PolicyObjective], case: Case, rounding: float, single: float) -> None:
    """Fail unless value, gradient and weights are finite, and the closed-form weights equal the gradient.

    Args:
        objectives: objectives to test.
        case: arguments of the objectives, in float64.
        rounding: tolerance in float64.
        single: tolerance in float32.
    """
    narrow = Case(case.log_probs.detach().float(), case.batch.to(torch.float32))
    for objective in objectives:
        for given, tolerance in ((case, rounding), (narrow, single)):
            try:
                _require_gradient(objective, given, tolerance)
            except LawBroken as broken:
                broken.finding = f"{broken.finding}\n  in {given.log_probs.dtype}, in {objective!r}"
                raise


def _require_gradient(objective: PolicyObjective, case: Case, tolerance: float) -> None:
    value, gradient, weights = differentiate(objective, *case)
    require_finite("the value", value)
    require_finite("the gradient by autograd", gradient)
    require_finite("total weights", weights.total)
    # Numbers below the smallest normal one have no digits to compare.
    allowed = tolerance * (scale_of(weights) + gradient.abs()) + torch.finfo(gradient.dtype).tiny
    require_close("total weights (expected: gradient by autograd)", weights.total, gradient, allowed)
