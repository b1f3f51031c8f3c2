"""Properties of the arithmetic: every finite input stays finite, and single precision stays close to double."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregate_po import (
    AdaptiveClip,
    BernoulliKLMask,
    Chain,
    CompletionRatio,
    GammaKernel,
    NegativeCap,
    PolicyBatch,
    PolicyObjective,
    Product,
    SigmoidGate,
    StepTotals,
    StraightThrough,
    TotalVariationMask,
    TwoSidedClip,
    divisor,
)
from tests.contracts.strategies import (
    AGGREGATORS,
    COMPOSITIONS,
    SEQUENCE_TRANSFORMS,
    TOKEN_TRANSFORMS,
    Case,
    advantages,
    differentiate,
    each_composition,
    finite_batches,
    generators,
    label,
    masks,
    mean_weights,
    scale_of,
    shared,
    sizes,
    some_rows,
    span_ids,
    step_totals,
    taken,
    transitions,
    with_group_terms,
)
from tests.third_party import TanhLimit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_composition
@given(data=st.data())
def test_every_finite_input_gives_finite_value_weights_and_gradient(objective, dtype, data):
    log_probs, batch = taken(objective, data.draw(finite_batches(dtype)))
    value, gradient, weights = differentiate(objective, log_probs, batch)
    for result in (value, gradient, weights.total, *vars(weights).values()):
        assert torch.isfinite(result).all()


# Parts with extreme parameters, and transforms in a place that no recipe has them in.
FURTHER_TOKEN_TRANSFORMS = [
    GammaKernel(),
    StraightThrough(SigmoidGate()),
    SigmoidGate(10.0, 0.1),
    CompletionRatio(Product()),
    Chain([SigmoidGate(), GammaKernel()]),
]
FURTHER_SEQUENCE_TRANSFORMS = [
    GammaKernel(),
    StraightThrough(SigmoidGate()),
    SigmoidGate(10.0, 0.1),
    AdaptiveClip(),
    TwoSidedClip(0.5, 2.0),
    NegativeCap(3.0),
    TotalVariationMask(),
    BernoulliKLMask(),
    Chain([GammaKernel(), SigmoidGate()]),
]


@pytest.fixture(scope="module")
def far_from_the_policy():
    """Completions of 128 tokens, each of one extreme log ratio or of many, under advantages of each sign."""
    generator = torch.Generator().manual_seed(0)
    constant = torch.tensor([1.0, 5.0, -5.0, 20.0, -20.0, 80.0, -80.0, 0.0, 1e-3]).unsqueeze(-1).expand(-1, 128)
    mixed = [40 * torch.rand(2, 128, generator=generator) - 20, torch.randn(2, 128, generator=generator)]
    alternating = torch.tensor([20.0, -20.0]).repeat(1, 64)
    log_ratio = torch.cat([constant, *mixed, alternating]).double().repeat(3, 1)
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64).repeat_interleave(len(log_ratio) // 3)
    mask = torch.ones(log_ratio.shape, dtype=torch.bool)
    mask[1, 50:] = False
    totals = StepTotals(completions=60, tokens=5000, progress=0.3, reward_mean=0.4, reward_std=0.3)
    spans = torch.arange(128).expand_as(log_ratio) // 10
    steps = transitions(*log_ratio.shape, generator)
    return log_ratio, PolicyBatch(torch.zeros_like(log_ratio), mask, signs, totals, span_ids=spans, **steps)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-2)], ids=["double", "single"])
@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=label)
def test_every_composition_is_finite_far_from_the_policy(far_from_the_policy, aggregator, dtype, rtol):
    """Each aggregator with each pair of transforms: finite, and the closed form is the gradient."""
    log_ratio, batch = far_from_the_policy
    log_ratio, batch = log_ratio.to(dtype), batch.to(dtype)
    before, after = TOKEN_TRANSFORMS + FURTHER_TOKEN_TRANSFORMS, SEQUENCE_TRANSFORMS + FURTHER_SEQUENCE_TRANSFORMS
    for token_transform, sequence_transform in itertools.product(before, after):
        objective = PolicyObjective(aggregator, token_transform, sequence_transform)
        value, gradient, weights = differentiate(objective, log_ratio, batch)
        results = (value, gradient, weights.total, *vars(weights).values())
        assert all(torch.isfinite(result).all() for result in results), objective
        allowed = rtol * scale_of(weights) + torch.finfo(dtype).tiny
        assert ((weights.total - gradient).abs() <= allowed).all(), objective


@st.composite
def exact_batches(draw):
    """Multiples of 1/8 below 32, so that even bfloat16 represents them, and their differences, exactly.

    No clip bound of the parts is a multiple, so that no token is on another side of it in another precision.
    """
    batch, time = draw(sizes(5)), draw(sizes(64))
    generator = draw(generators())
    spread = draw(st.sampled_from([1, 4, 16, 120]))

    def eighths():
        return torch.randint(-spread, spread + 1, (batch, time), generator=generator).double() / 8

    mask = draw(masks(batch, time))
    weights = draw(st.one_of(st.none(), mean_weights(batch, time)))
    totals = draw(step_totals(mask, weights))
    optional = {"groups": torch.randint(3, (batch,), generator=generator), "mean_weights": weights}
    optional["span_ids"] = span_ids(batch, time, generator)
    # Multiples of 1/8 too; 1/16 is on no bound of a mask.
    optional["divergence"], optional["ref_divergence"] = eighths().abs(), eighths().abs()
    optional["scale"] = torch.full((batch, time), draw(st.sampled_from([0.5, 1.0])), dtype=torch.float64)
    return Case(eighths(), PolicyBatch(eighths(), mask, draw(advantages(batch)), totals, eighths(), **optional))


# Log ratios up to 20 times exponents up to 8, to be exponentiated: 160 units of rounding of single precision.
SINGLE = 160 * torch.finfo(torch.float32).eps


# Autograd derives tanh as 1 - tanh^2, which has no digits left where the user's limit is nearly reached.
ACCURATE = {name: part for name, part in COMPOSITIONS.items() if not isinstance(part.sequence_transform, TanhLimit)}
ACCURATE = {name: part for name, part in ACCURATE.items() if not isinstance(part.token_transform, TanhLimit)}
# The kernel's logarithm is lost in rounding where the ratio is large; next to nothing is left of its value there.
ACCURATE = {name: part for name, part in ACCURATE.items() if "GammaKernel" not in repr(part)}


@pytest.mark.parametrize("objective", ACCURATE.values(), ids=ACCURATE.keys())
@shared
@given(case=exact_batches())
def test_single_precision_follows_double(objective, case):
    log_probs, batch = taken(objective, case)
    double = objective.gradient_weights(log_probs, batch)
    single = objective.gradient_weights(log_probs.float(), batch.to(torch.float32))
    # Where the mean itself falls within rounding of a bound, either side is right.
    assume(torch.equal(single.clipped, double.clipped) and torch.equal(single.overflow, double.overflow))
    assert ((single.total.double() - double.total).abs() <= SINGLE * scale_of(double)).all()
    value = objective(log_probs, batch)
    single_value = objective(log_probs.float(), batch.to(torch.float32))
    assert (single_value.double() - value).abs() <= SINGLE * sum_of_magnitudes(objective, log_probs, batch)


def sum_of_magnitudes(objective, log_probs, batch):
    """Value of the objective without cancellation between its terms."""
    unpenalized = PolicyObjective(**{name: part for name, part in vars(objective).items() if name != "penalties"})
    batch = with_group_terms(objective, log_probs, batch)
    rows = [torch.arange(len(log_probs)) == row for row in range(len(log_probs))]
    values = [unpenalized(log_probs[row], some_rows(batch, row)).abs() for row in rows]
    counts = batch.response_mask if batch.mean_weights is None else batch.mean_weights
    shares = objective.gradient_weights(log_probs, batch).completion * counts / divisor(counts.sum(-1, True))
    costs = [shares * penalty.token_costs(log_probs, batch).abs() for penalty in objective.penalties]
    return sum(values) + sum(torch.where(batch.response_mask, cost, 0).sum() for cost in costs)


@each_composition
@given(case=exact_batches())
def test_bfloat16_inputs_lose_nothing_but_the_rounding_of_their_gradient(objective, case):
    """Arithmetic on them is in single precision: the same value and weights, a gradient that is rounded once."""
    log_probs, batch = taken(objective, case)
    half = batch.to(torch.bfloat16)
    single = half.to(torch.float32)
    value, gradient, weights = differentiate(objective, log_probs.float(), single)
    half_value, half_gradient, half_weights = differentiate(objective, log_probs.bfloat16(), half)
    assert half_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(half_value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(half_weights.total, weights.total, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(half_gradient.float(), gradient, rtol=2**-8, atol=1e-9)
