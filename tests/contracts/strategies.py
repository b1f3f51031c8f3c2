"""Parts and compositions for the property tests; the random inputs are those of `aggregate_po.testing`."""

import math
import re
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from aggregate_po import (
    AdaptiveClip,
    AdvantageWeighted,
    ArctanGate,
    ArithmeticMean,
    BernoulliKLMask,
    Chain,
    CompletionRatio,
    ConstantLength,
    DiscountedFuture,
    EntropyBonus,
    ESSMatching,
    GammaKernel,
    GaussianKL,
    GaussianKLMask,
    GeometricMean,
    ImportanceWeighted,
    K1Penalty,
    K2Penalty,
    K3Penalty,
    LabelLogistic,
    LagrangePenalty,
    LehmerMean,
    LengthScaledProduct,
    LengthWeighted,
    LinearExponent,
    NegativeCap,
    NestedMean,
    PessimisticClip,
    PolicyObjective,
    PowerMean,
    PrefixGeometricMean,
    PrefixKalmanFilter,
    PrefixMinimum,
    PrefixProduct,
    ProbabilityWeighted,
    Product,
    RatioNorm,
    RatioVariance,
    RewardExponent,
    ScaledClip,
    SequenceMean,
    SigmoidGate,
    StaleCompletionMask,
    StraightThrough,
    TargetCrossEntropy,
    TokenMean,
    TotalVariationMask,
    TwoSidedClip,
)
from aggregate_po import recipes as published
from aggregate_po.testing.contexts import differentiate, scale_of, some_rows, with_group_terms  # noqa: F401
from aggregate_po.testing.strategies import (  # noqa: F401  # one place to import from
    EXTREMES,
    ON_BOUNDS,
    Case,
    advantages,
    batches,
    finite_batches,
    generators,
    log_ratios,
    masks,
    mean_weights,
    progress,
    sizes,
    span_ids,
    step_totals,
    token_ratios,
    transitions,
)
from tests.third_party import (
    AsinhMean,
    CompletionSum,
    EarlierCountsMore,
    PrefixMaximum,
    Proximity,
    SelfDualMean,
    TanhLimit,
)

POWER_MEANS = [PowerMean(p) for p in (-8.0, -1.0, -1e-9, 0, 1e-300, 1e-9, 0.5, 1, 2.0, 8.0)]
POWER_MEANS += [PowerMean(ESSMatching()), PowerMean(LinearExponent()), PowerMean(RewardExponent())]
LEHMER_MEANS = [LehmerMean(p) for p in (-8.0, 0.0, 0.5, 2.0)]
HOMOGENEOUS_MEANS = [ArithmeticMean(), GeometricMean(), *POWER_MEANS, *LEHMER_MEANS, SelfDualMean()]
MEANS = [*HOMOGENEOUS_MEANS, AsinhMean()]
NESTED_MEANS = [
    NestedMean(GeometricMean(), ArithmeticMean()),
    NestedMean(PowerMean(2.0), PowerMean(ESSMatching())),
    NestedMean(Product(), PowerMean(-1.0)),
]
AGGREGATORS = [*MEANS, Product(), LengthScaledProduct(0.6), *NESTED_MEANS]

PREFIXES = [
    None,
    PrefixProduct(),
    PrefixGeometricMean(),
    PrefixMinimum(),
    PrefixKalmanFilter(),
    PrefixKalmanFilter(1.0, 0.5),
    PrefixKalmanFilter(math.inf),
    PrefixKalmanFilter(0.0, math.inf),
    PrefixKalmanFilter(0.0, 0.0),
    PrefixMaximum(),
]

SUFFIX_WEIGHTS = [
    DiscountedFuture(),
    DiscountedFuture(2.0, 0.0, 10.0, max_ratio=1.4, cap_from=1.1),
    EarlierCountsMore(),
]

# Bounds that widen along a prefix.
PREFIX_CLIP = Chain([ScaledClip(PessimisticClip.log(0.025, 0.05), 0.5), ScaledClip(NegativeCap(1.1), 0.5)])

# They read the scale of a single step, which is none after a prefix.
RATIO_NORMS = [RatioNorm(), Chain([RatioNorm(), PessimisticClip(4e-6, 4e-6)])]
TOKEN_TRANSFORMS = [
    None,
    PessimisticClip(0.2, 0.28),
    PessimisticClip(1.0, math.inf),
    PessimisticClip.log(0.4, 0.4),
    AdaptiveClip(),
    TwoSidedClip(0.5, 2.0),
    StraightThrough(TwoSidedClip(0.0, 5.0)),
    Chain([PessimisticClip(0.2, 0.28), NegativeCap(3.0)]),
    Chain([CompletionRatio(GeometricMean()), PessimisticClip.log(0.4, 0.4)]),
    Chain([CompletionRatio(Product()), StraightThrough(GammaKernel())]),
    Chain([StraightThrough(TwoSidedClip(0.0, 20.0)), TotalVariationMask()]),
    PREFIX_CLIP,
    BernoulliKLMask(),
    StaleCompletionMask(0.4),
    *RATIO_NORMS,
    GaussianKLMask(),
    SigmoidGate(),
    ArctanGate(1.0),
    TanhLimit(2.0),
]
# After a mean, this bounds the sum.
SUM_CLIP = ScaledClip(PessimisticClip.log(0.4, 0.3), exponent=-1)

SEQUENCE_TRANSFORMS = [
    None,
    PessimisticClip(0.2, 0.2),
    PessimisticClip(3e-4, 4e-4),
    PessimisticClip.log(0.4, 0.4),
    SUM_CLIP,
    ScaledClip(PessimisticClip.log(0.1, 0.1), exponent=0.5),
    StraightThrough(GammaKernel()),
    SigmoidGate(),
    ArctanGate(5.0),
    TanhLimit(3.0),
]
NORMALIZERS = [SequenceMean(), TokenMean(), ConstantLength(16), LengthWeighted()]
PENALTIES = [
    K1Penalty(0.3),
    K2Penalty(0.2),
    K2Penalty(0.2, anchor="behavior"),
    K3Penalty(0.04),
    ImportanceWeighted(K3Penalty(0.04)),
    EntropyBonus(0.1),
    GaussianKL(0.04),
    RatioVariance(0.1),
    AdvantageWeighted(RatioVariance(2.5)),
    AdvantageWeighted(ProbabilityWeighted(K2Penalty(0.2))),
    LagrangePenalty(RatioVariance(), bound=0.1, step_size=1.0, multiplier=0.3),
    Proximity(0.5),
]

GROUP_OBJECTIVES = [LabelLogistic(), TargetCrossEntropy(), TargetCrossEntropy(0.2), CompletionSum()]

# Every recipe with its defaults; two have an argument without.
RECIPES = {name: getattr(published, name) for name in published.__all__}
RECIPES["dr_grpo"] = partial(published.dr_grpo, 32)
RECIPES["fspo"] = partial(published.fspo, 0.1)
RECIPES["grpo_guard"] = partial(published.grpo_guard, 10)

PENALIZED = [K3Penalty(0.04), EntropyBonus(0.1)]

# Every recipe, and what no recipe has: parts of a user, other exponents, both transforms at once, every penalty.
COMPOSITIONS = {name: recipe(penalties=PENALIZED) for name, recipe in RECIPES.items()}
COMPOSITIONS |= {
    "lehmer": PolicyObjective(LehmerMean(2.0), TanhLimit(2.0), SUM_CLIP, TokenMean(), PENALTIES),
    "asinh": PolicyObjective(AsinhMean(), None, TanhLimit(3.0), ConstantLength(16), [K1Penalty(0.3)]),
    "product": PolicyObjective(Product(), None, PessimisticClip.log(0.4, 0.4), TokenMean(), [K2Penalty(0.2)]),
    "power, -8": PolicyObjective(PowerMean(-8.0), PessimisticClip.log(0.4, 0.4), PessimisticClip(0.2, 0.2)),
    "kernel after the mean": PolicyObjective(Product(), None, StraightThrough(GammaKernel()), LengthWeighted()),
    "prefix product": PolicyObjective(ArithmeticMean(), PREFIX_CLIP, prefix=PrefixProduct()),
    "prefix mean, then its geometric mean": PolicyObjective(GeometricMean(), prefix=PrefixGeometricMean()),
    "prefix minimum": PolicyObjective(PowerMean(2.0), PessimisticClip.log(0.4, 0.4), prefix=PrefixMinimum()),
    "prefix filter": PolicyObjective(Product(), prefix=PrefixKalmanFilter(1.0, 0.5), penalties=PENALIZED),
    "prefix maximum": PolicyObjective(ArithmeticMean(), None, SigmoidGate(), prefix=PrefixMaximum()),
    "sentences": PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean()), PessimisticClip.log(0.4, 0.4)),
    "suffix weight of prefixes": PolicyObjective(
        ArithmeticMean(), PREFIX_CLIP, prefix=PrefixProduct(), suffix_weight=SUFFIX_WEIGHTS[1]
    ),
    "two-sided": PolicyObjective(GeometricMean(), TwoSidedClip(0.5, 2.0), SigmoidGate()),
    "group of clipped products": PolicyObjective(
        Product(), PessimisticClip.log(0.4, 0.4), None, TokenMean(), group_objective=TargetCrossEntropy(0.2)
    ),
    "group of clipped values": PolicyObjective(
        PowerMean(2.0), SigmoidGate(), TanhLimit(3.0), group_objective=CompletionSum()
    ),
}


# Where a property is tested on each of many parts, the long run tries fewer inputs on each.
shared = settings(max_examples=max(12, settings().max_examples // 20))


def each_composition(test):
    """Run a property test, which generates its inputs, for every composition."""
    return pytest.mark.parametrize("objective", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())(shared(test))


# In all others, the place of a token in its completion has a meaning.
ORDER_FREE = {name: part for name, part in COMPOSITIONS.items() if part.prefix is None and part.suffix_weight is None}


def each_order_free_composition(test):
    """Run a property test for every composition that has no part for the order of the tokens."""
    return pytest.mark.parametrize("objective", ORDER_FREE.values(), ids=ORDER_FREE.keys())(shared(test))


def taken(objective, case):
    """Drop the weights of the tokens if the objective does not take them."""
    weights = case.batch.mean_weights if objective.takes_mean_weights else None
    return Case(case.log_probs, replace(case.batch, mean_weights=weights))


def label(part):
    """Name of a part in the report of the tests, without addresses in memory."""
    return re.sub(r"target=<function (\w+) at \w+>", "", str(part))


def exponents():
    """Orders from -8 to 8, with many at and next to zero."""
    special = [0.0, 1e-8, -1e-8, 1e-10, -1e-10, 1e-16, 1e-300, 5e-324, 0.5, 1.0, -1.0, 2.0, 8.0, -8.0]
    return st.one_of(st.floats(-8, 8), st.floats(-1e-8, 1e-8), st.sampled_from(special))


def aggregators():
    """Every aggregator of the library, power means of any order, and two of a user."""
    return st.sampled_from([*AGGREGATORS, None]).flatmap(
        lambda aggregator: exponents().map(PowerMean) if aggregator is None else st.just(aggregator)
    )


@st.composite
def objectives(draw):
    """Any composition of the parts, or a recipe."""
    chosen = draw(st.lists(st.sampled_from(PENALTIES), max_size=3, unique=True))
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(list(RECIPES.values())))(penalties=chosen)
    token_transform = draw(st.sampled_from(TOKEN_TRANSFORMS))
    return PolicyObjective(
        draw(aggregators()),
        token_transform,
        draw(st.sampled_from(SEQUENCE_TRANSFORMS)),
        draw(st.sampled_from(NORMALIZERS)),
        chosen,
        prefix=None if token_transform in RATIO_NORMS else draw(st.sampled_from(PREFIXES)),
        group_objective=draw(st.sampled_from([None, *GROUP_OBJECTIVES])),
    )


def assert_rows_close(actual, expected, rtol, scale):
    """Relative agreement of `batch time` tensors; absolute where they are a thousandth of the row's `scale`."""
    error = (actual - expected).abs()
    allowed = rtol * expected.abs() + 1e-3 * rtol * scale
    assert (error <= allowed).all(), f"{actual} differs from {expected} by up to {error.max()}"
