"""Properties of the arithmetic: every finite input stays finite, and single precision stays close to double."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregate_po import PolicyBatch, PolicyObjective
from tests.contracts.strategies import (
    COMPOSITIONS,
    advantages,
    differentiate,
    each_composition,
    finite_batches,
    generators,
    masks,
    scale_of,
    shared,
    sizes,
    some_rows,
    step_totals,
)
from tests.third_party import TanhLimit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_composition
@given(data=st.data())
def test_every_finite_input_gives_finite_value_weights_and_gradient(objective, dtype, data):
    log_probs, batch = data.draw(finite_batches(dtype))
    value, gradient, weights = differentiate(objective, log_probs, batch)
    for result in (value, gradient, weights.total, *vars(weights).values()):
        assert torch.isfinite(result).all()


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
    totals = draw(step_totals(mask))
    return eighths(), PolicyBatch(eighths(), mask, draw(advantages(batch)), totals, ref_log_probs=eighths())


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
    log_probs, batch = case
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
    rows = [torch.arange(len(log_probs)) == row for row in range(len(log_probs))]
    values = [unpenalized(log_probs[row], some_rows(batch, row)).abs() for row in rows]
    shares = objective.gradient_weights(log_probs, batch).completion / batch.response_mask.sum(-1, True).clamp(min=1)
    costs = [shares * penalty.token_costs(log_probs, batch).abs() for penalty in objective.penalties]
    return sum(values) + sum(torch.where(batch.response_mask, cost, 0).sum() for cost in costs)


@each_composition
@given(case=exact_batches())
def test_bfloat16_inputs_lose_nothing_but_the_rounding_of_their_gradient(objective, case):
    """Arithmetic on them is in single precision: the same value and weights, a gradient that is rounded once."""
    log_probs, batch = case
    half = batch.to(torch.bfloat16)
    single = PolicyBatch(
        half.old_log_probs.float(), half.response_mask, half.advantages.float(), half.totals, half.ref_log_probs.float()
    )
    value, gradient, weights = differentiate(objective, log_probs.float(), single)
    half_value, half_gradient, half_weights = differentiate(objective, log_probs.bfloat16(), half)
    assert half_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(half_value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(half_weights.total, weights.total, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(half_gradient.float(), gradient, rtol=2**-8, atol=1e-9)
