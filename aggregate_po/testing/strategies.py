"""Random inputs of the property tests.

Tensors are filled from a short palette of generated numbers, so that ties, exact zeros and points exactly on a bound
are common, and a failing example stays readable. A generated seed determines the entry of each number.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.totals import StepTotals

# Log ratios exactly on the bounds of common clips and of the objective.
ON_BOUNDS = [0.4, -0.4, 20.0, -20.0, math.log1p(0.2), math.log1p(-0.2), math.log1p(0.28), math.log1p(4e-4)]

# Divergences of denoising steps, one of them exactly on the bound of a mask.
DIVERGENCES = [0.0, 1e-5, 1e-6, 0.0125, 2.0, 30.0]

EXTREMES = [800.0, -800.0, 20.0, -20.0, 0.0, 1e4, -1e4, 1e30, -1e30, 1e-30]


class Case(NamedTuple):
    """Arguments of an objective."""

    log_probs: PerToken
    batch: PolicyBatch


# Strategies are built once, here or by `cache`: building one takes longer than generating an example.


@cache
def sizes(limit: int) -> SearchStrategy[int]:
    """Generate sizes of an axis, small ones often."""
    return st.one_of(st.integers(1, 4), st.integers(1, limit))


@cache
def generators() -> SearchStrategy[torch.Generator]:
    """Generate torch generators; hypothesis shrinks the seed."""
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@cache
def junk() -> SearchStrategy[float]:
    """Generate values for padding, such as NaN and infinity."""
    return st.sampled_from([math.nan, math.inf, -math.inf, 1e300])


@cache
def _palettes(limit: float) -> SearchStrategy[list[float]]:
    special = st.sampled_from([0.0, limit, -limit, *ON_BOUNDS])
    return st.lists(st.one_of(st.floats(-limit, limit), st.floats(-1, 1), special), min_size=1, max_size=5)


_BLURS = st.sampled_from([0.0, 1e-3, 1.0])
_KINDS_OF_MASK = st.sampled_from(["full", "padded", "holes"])
_SWITCH = st.booleans()
_REWARDS = st.sampled_from([(0.0, 0.0), (0.25, 0.4), (1.0, 0.0), (-3.0, 2.0)])
_PROGRESS = st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-10, 1.0])
_SPREADS = st.sampled_from([1, 4, 16, 240])
_WEIGHTS = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5, 0.125, 2.0**-16, 2.0**16]), min_size=1, max_size=4)


@st.composite
def log_ratios(draw: DrawFn, batch: int, time: int, limit: float = 80.0) -> Tensor:
    """Generate log ratios up to `limit`; shape `batch time`, float64."""
    palette = torch.tensor(draw(_palettes(limit)), dtype=torch.float64)
    generator = draw(generators())
    chosen = palette[torch.randint(len(palette), (batch, time), generator=generator)]
    blur = draw(_BLURS)
    noise = torch.randn(batch, time, generator=generator, dtype=torch.float64)
    return (chosen + blur * noise).clamp(-limit, limit)


@st.composite
def masks(draw: DrawFn, batch: int, time: int, empty_rows: bool = True) -> Tensor:
    """Generate response masks: full, padded at the end, or with holes; some rows may be empty."""
    generator = draw(generators())
    kind = draw(_KINDS_OF_MASK)
    if kind == "full":
        mask = torch.ones(batch, time, dtype=torch.bool)
    elif kind == "padded":
        mask = torch.arange(time) < torch.randint(1, time + 1, (batch, 1), generator=generator)
    else:
        mask = torch.rand(batch, time, generator=generator) < 0.6
    if not empty_rows:
        mask[:, 0] |= ~mask.any(dim=-1)
    elif draw(_SWITCH):
        mask &= torch.rand(batch, 1, generator=generator) < 0.7
    return mask


@st.composite
def mean_weights(draw: DrawFn, batch: int, time: int, zeros: bool = True) -> Tensor:
    """Generate weights of tokens: equal, of very different sizes, some of them 0; shape `batch time`, float64."""
    palette = torch.tensor(draw(_WEIGHTS), dtype=torch.float64)
    weights = palette[torch.randint(len(palette), (batch, time), generator=draw(generators()))]
    return weights if zeros else torch.where(weights > 0, weights, 1)


@st.composite
def advantages(draw: DrawFn, batch: int) -> Tensor:
    """Generate advantages of both signs, and zeros; shape `batch`."""
    palette = torch.tensor([1.0, -1.0, 0.0, 0.375, -2.5], dtype=torch.float64)
    return palette[torch.randint(len(palette), (batch,), generator=draw(generators()))]


def progress() -> SearchStrategy[float]:
    """Generate fractions of training completed; the exponent of a linear schedule is 0 halfway."""
    return _PROGRESS


@st.composite
def step_totals(draw: DrawFn, mask: Tensor, weights: Tensor | None = None) -> StepTotals:
    """Generate totals of a step that consists of this batch, with progress and reward statistics."""
    mean, deviation = draw(_REWARDS)
    return StepTotals.of(mask, weights, progress=draw(progress()), reward_mean=mean, reward_std=deviation)


def span_ids(batch: int, time: int, generator: torch.Generator) -> Tensor:
    """Sample a span for each token, of up to four in a completion, not always adjacent; shape `batch time`."""
    steps = torch.rand(batch, time, generator=generator) < 0.2
    return torch.where(torch.rand(batch, 1, generator=generator) < 0.5, steps, 0).cumsum(dim=-1) % 4


def transitions(batch: int, time: int, generator: torch.Generator) -> dict[str, Any]:
    """Sample divergence and standard deviation of denoising steps; shape `batch time`, float64."""
    divergences = torch.tensor(DIVERGENCES, dtype=torch.float64)
    scales = torch.tensor([1.0, 0.5, 1.5, 2.0**-7], dtype=torch.float64)
    return {
        "divergence": divergences[torch.randint(len(divergences), (batch, time), generator=generator)],
        "scale": scales[torch.randint(len(scales), (batch, time), generator=generator)],
    }


@st.composite
def token_ratios(
    draw: DrawFn, limit: float = 80.0, empty_rows: bool = True, max_time: int = 64, weighted: bool = False
) -> TokenRatios:
    """Generate contexts for an aggregator or a token transform; half of them have weights if `weighted`."""
    batch, time = draw(sizes(5)), draw(sizes(max_time))
    log_ratio = draw(log_ratios(batch, time, limit))
    mask = draw(masks(batch, time, empty_rows))
    weights = draw(mean_weights(batch, time, zeros=empty_rows)) if weighted and draw(_SWITCH) else None
    totals = draw(step_totals(mask, weights))
    generator = draw(generators())
    steps = transitions(batch, time, generator)
    tokens = TokenRatios.of(log_ratio, mask, draw(advantages(batch)), totals, weights, **steps)
    mask = tokens.response_mask
    saturated = torch.rand(batch, time, generator=generator) < 0.3 * draw(_SWITCH)
    old = 0 - 5 * torch.rand(batch, time, generator=generator, dtype=torch.float64) * draw(_SWITCH)
    spans = torch.where(mask, span_ids(batch, time, generator), 0)
    return replace(tokens, saturated=saturated & mask, old_log_probs=torch.where(mask, old, 0), span_ids=spans)


@st.composite
def exact_token_ratios(draw: DrawFn, weighted: bool = False) -> TokenRatios:
    """Generate contexts of multiples of 1/8 up to 30, which every precision represents exactly, as it does weights."""
    batch, time = draw(sizes(5)), draw(sizes(64))
    generator = draw(generators())
    spread = draw(_SPREADS)
    eighths = torch.randint(-spread, spread + 1, (batch, time), generator=generator).double() / 8
    mask = draw(masks(batch, time))
    weights = draw(mean_weights(batch, time)) if weighted and draw(_SWITCH) else None
    spans, totals = span_ids(batch, time, generator), draw(step_totals(mask, weights))
    return TokenRatios.of(eighths, mask, draw(advantages(batch)), totals, weights, spans)


@st.composite
def batches(
    draw: DrawFn, limit: float = 80.0, empty_rows: bool = True, max_time: int = 64, weighted: bool = False
) -> Case:
    """Generate log-probabilities that require gradient and their batch, float64; half have weights if `weighted`."""
    batch, time = draw(sizes(5)), draw(sizes(max_time))
    generator = draw(generators())
    # With zeros for the behavior policy, the log ratio equals the number of the palette exactly.
    old = 0 - 5 * torch.rand(batch, time, generator=generator, dtype=torch.float64) * draw(_SWITCH)
    log_probs = old + draw(log_ratios(batch, time, limit))
    mask = draw(masks(batch, time, empty_rows))
    weights = draw(mean_weights(batch, time, zeros=empty_rows)) if weighted and draw(_SWITCH) else None
    filled = PolicyBatch(
        old_log_probs=old,
        response_mask=mask,
        advantages=draw(advantages(batch)),
        totals=draw(step_totals(mask, weights)),
        ref_log_probs=old + draw(log_ratios(batch, time, 30.0)),
        groups=torch.randint(3, (batch,), generator=generator),
        mean_weights=weights,
        span_ids=span_ids(batch, time, generator),
        ref_divergence=torch.rand(batch, time, generator=generator, dtype=torch.float64),
        **transitions(batch, time, generator),
    )
    return Case(log_probs.requires_grad_(), filled)


@st.composite
def finite_batches(draw: DrawFn, dtype: torch.dtype) -> Case:
    """Generate log-probabilities of any finite size under each of the three policies."""
    batch, time = draw(sizes(4)), draw(sizes(64))
    generator = draw(generators())
    palette = torch.tensor([*EXTREMES, torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=torch.float64).to(dtype)
    palette = palette[: draw(st.integers(2, len(palette)))]

    def fill() -> Tensor:
        return palette[torch.randint(len(palette), (batch, time), generator=generator)]

    mask = draw(masks(batch, time))
    log_probs, old = fill(), fill() * draw(_SWITCH)
    given, groups = draw(advantages(batch)).to(dtype), torch.randint(3, (batch,), generator=generator)
    weights = draw(mean_weights(batch, time)) if draw(_SWITCH) else None
    optional: dict[str, Any] = {"ref_log_probs": fill(), "groups": groups, "mean_weights": weights}
    optional |= {"span_ids": span_ids(batch, time, generator), "ref_divergence": fill().abs()}
    optional |= transitions(batch, time, generator) | {"divergence": fill().abs()}
    return Case(log_probs, PolicyBatch(old, mask, given, draw(step_totals(mask, weights)), **optional))
