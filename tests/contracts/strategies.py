"""Random batches and compositions for the laws.

Tensors are filled from a short palette of drawn numbers, so that ties, exact zeros and points exactly on a bound are
common, and a failing example stays readable; a drawn seed says which entry gets which number.
"""

import math
import re
from dataclasses import replace

import torch
from hypothesis import strategies as st

from aggregate_po import (
    ArithmeticMean,
    ConstantLength,
    EntropyBonus,
    ESSMatching,
    GeometricMean,
    K1Penalty,
    K2Penalty,
    K3Penalty,
    LinearExponent,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    SequenceMean,
    StepTotals,
    TokenMean,
    TokenRatios,
    TrajectoryLogClip,
)
from aggregate_po import recipes as published
from tests.third_party import AsinhMean, LehmerMean, Proximity, TanhLimit

# --- parts -----------------------------------------------------------------------------------------------------------

POWER_MEANS = [PowerMean(p) for p in (-8.0, -1.0, -1e-9, 0, 1e-300, 1e-9, 0.5, 1, 2.0, 8.0)]
POWER_MEANS += [PowerMean(ESSMatching()), PowerMean(LinearExponent())]
HOMOGENEOUS_MEANS = [ArithmeticMean(), GeometricMean(), *POWER_MEANS, LehmerMean(2.0), LehmerMean(0.5)]
MEANS = [*HOMOGENEOUS_MEANS, AsinhMean()]
AGGREGATORS = [*MEANS, Product()]

TOKEN_TRANSFORMS = [
    None,
    PessimisticClip(0.2, 0.28),
    PessimisticClip(1.0, math.inf),
    PessimisticClip.log(0.4, 0.4),
    TanhLimit(2.0),
]
SEQUENCE_TRANSFORMS = [
    None,
    PessimisticClip(0.2, 0.2),
    PessimisticClip(3e-4, 4e-4),
    PessimisticClip.log(0.4, 0.4),
    TrajectoryLogClip(0.4, 0.3),
    TanhLimit(3.0),
]
NORMALIZERS = [SequenceMean(), TokenMean(), ConstantLength(16)]
PENALTIES = [K1Penalty(0.3), K2Penalty(0.2), K3Penalty(0.04), EntropyBonus(0.1), Proximity(0.5)]

RECIPES = {
    "grpo": published.grpo,
    "grpo_wide_clip": published.grpo_wide_clip,
    "dr_grpo": lambda **options: published.dr_grpo(32, **options),
    "dapo": published.dapo,
    "gspo": published.gspo,
    "gmpo": published.gmpo,
    "gmpo_no_clip": published.gmpo_no_clip,
    "gmpo_sequence_clip": published.gmpo_sequence_clip,
    "gmpo_without_length_norm": published.gmpo_without_length_norm,
    "hmpo": published.hmpo,
    "pmpo": published.pmpo,
    "holder_po": published.holder_po,
}

PENALISED = [K3Penalty(0.04), EntropyBonus(0.1)]

# Every recipe, and what no recipe has: parts of a user, other exponents, both transforms at once, every penalty.
COMPOSITIONS = {name: recipe(penalties=PENALISED) for name, recipe in RECIPES.items()}
COMPOSITIONS |= {
    "lehmer": PolicyObjective(LehmerMean(2.0), TanhLimit(2.0), TrajectoryLogClip(0.4, 0.3), TokenMean(), PENALTIES),
    "asinh": PolicyObjective(AsinhMean(), None, TanhLimit(3.0), ConstantLength(16), [K1Penalty(0.3)]),
    "product": PolicyObjective(Product(), None, PessimisticClip.log(0.4, 0.4), TokenMean(), [K2Penalty(0.2)]),
    "power, -8": PolicyObjective(PowerMean(-8.0), PessimisticClip.log(0.4, 0.4), PessimisticClip(0.2, 0.2)),
    "arithmetic, no clip": PolicyObjective(ArithmeticMean()),
}


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
    return PolicyObjective(
        draw(aggregators()),
        draw(st.sampled_from(TOKEN_TRANSFORMS)),
        draw(st.sampled_from(SEQUENCE_TRANSFORMS)),
        draw(st.sampled_from(NORMALIZERS)),
        chosen,
    )


# --- numbers ---------------------------------------------------------------------------------------------------------

# Exactly on the bounds of the transforms above and of the objective.
ON_BOUNDS = [0.4, -0.4, 20.0, -20.0, math.log1p(0.2), math.log1p(-0.2), math.log1p(0.28), math.log1p(4e-4)]


@st.composite
def log_ratios(draw, batch, time, limit=80.0):
    """Log ratios up to `limit`, shape `batch time`, float64."""
    numbers = st.one_of(st.floats(-limit, limit), st.floats(-1, 1), st.sampled_from([0.0, limit, -limit, *ON_BOUNDS]))
    palette = torch.tensor(draw(st.lists(numbers, min_size=1, max_size=5)), dtype=torch.float64)
    generator = draw(generators())
    chosen = palette[torch.randint(len(palette), (batch, time), generator=generator)]
    blur = draw(st.sampled_from([0.0, 1e-3, 1.0]))
    noise = torch.randn(batch, time, generator=generator, dtype=torch.float64)
    return (chosen + blur * noise).clamp(-limit, limit)


@st.composite
def masks(draw, batch, time, empty_rows=True):
    """Response masks: full, padded at the end, or with holes; some rows may be empty."""
    generator = draw(generators())
    kind = draw(st.sampled_from(["full", "padded", "holes"]))
    if kind == "full":
        mask = torch.ones(batch, time, dtype=torch.bool)
    elif kind == "padded":
        mask = torch.arange(time) < torch.randint(1, time + 1, (batch, 1), generator=generator)
    else:
        mask = torch.rand(batch, time, generator=generator) < 0.6
    if not empty_rows:
        mask[:, 0] |= ~mask.any(dim=-1)
    elif draw(st.booleans()):
        mask &= torch.rand(batch, 1, generator=generator) < 0.7
    return mask


def generators():
    """Torch generators; the seed is what shrinks."""
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def sizes(limit):
    """Sizes of an axis, small ones often."""
    return st.one_of(st.integers(1, 4), st.integers(1, limit))


@st.composite
def token_ratios(draw, limit=80.0, empty_rows=True, max_time=64):
    """Contexts for an aggregator or a token transform."""
    batch, time = draw(sizes(5)), draw(sizes(max_time))
    log_ratio = draw(log_ratios(batch, time, limit))
    mask = draw(masks(batch, time, empty_rows))
    tokens = TokenRatios.of(log_ratio, mask, draw(advantages(batch)), StepTotals.of(mask, progress=draw(progress())))
    saturated = torch.rand(batch, time, generator=draw(generators())) < draw(st.sampled_from([0.0, 0.3]))
    return replace(tokens, saturated=saturated & mask)


@st.composite
def advantages(draw, batch):
    """Advantages of either sign, and none; shape `batch`."""
    palette = torch.tensor([1.0, -1.0, 0.0, 0.375, -2.5], dtype=torch.float64)
    return palette[torch.randint(len(palette), (batch,), generator=draw(generators()))]


def progress():
    """Share of the training done; the exponent of a linear schedule is 0 half-way."""
    return st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-10, 1.0])


@st.composite
def batches(draw, limit=80.0, empty_rows=True, max_time=64):
    """Log-probabilities that require gradient and their batch, float64."""
    batch, time = draw(sizes(5)), draw(sizes(max_time))
    generator = draw(generators())
    # With zeros for the behaviour policy, the log ratio is the palette's number exactly.
    old = -5 * torch.rand(batch, time, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0, 1]))
    log_probs = old + draw(log_ratios(batch, time, limit))
    mask = draw(masks(batch, time, empty_rows))
    filled = PolicyBatch(
        old_log_probs=old,
        response_mask=mask,
        advantages=draw(advantages(batch)),
        totals=StepTotals.of(mask, progress=draw(progress())),
        ref_log_probs=old + draw(log_ratios(batch, time, 30.0)),
    )
    return log_probs.requires_grad_(), filled


# --- measurements ----------------------------------------------------------------------------------------------------


def differentiate(objective, log_probs, batch):
    """Value, gradient by autograd, and closed-form weights in their factors."""
    inputs = log_probs.detach().clone().requires_grad_()
    value = objective(inputs, batch)
    value.backward()
    return value.detach(), inputs.grad, objective.gradient_weights(log_probs, batch)


def scale_of(weights):
    """What the sums behind a completion's weights amount to, however little of it passes the gate; `(batch, 1)`."""
    shared = weights.completion * weights.advantages * weights.magnitude * weights.concentration
    return shared.abs().amax(dim=-1, keepdim=True) + weights.penalty.abs().amax(dim=-1, keepdim=True)


def assert_rows_close(actual, expected, rtol, scale):
    """Relative agreement of `batch time` tensors; absolute where they are a thousandth of the row's `scale`."""
    error = (actual - expected).abs()
    allowed = rtol * expected.abs() + 1e-3 * rtol * scale
    assert (error <= allowed).all(), f"{actual} differs from {expected} by up to {error.max()}"


def some_rows(batch, rows, **changes):
    """The batch of some completions only, with the totals of the whole unless told otherwise."""
    per_row = ("old_log_probs", "response_mask", "advantages", "ref_log_probs")
    return replace(batch, **{name: getattr(batch, name)[rows] for name in per_row}, **changes)
