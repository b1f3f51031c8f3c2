"""Property: splitting a step into micro-batches changes no gradient, when the totals are those of the step."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import GeometricMean, PolicyBatch, PolicyObjective, StepTotals
from tests.contracts.strategies import (
    Case,
    each_composition,
    generators,
    mean_weights,
    some_rows,
    taken,
    transitions,
    with_group_terms,
)

COMPLETIONS, TOKENS = 12, 10
# Counts as numbers, as tensors, and as tensors that were summed over ranks in double precision.
COUNTS = [lambda count: count.item(), lambda count: count, lambda count: count.double()]


@st.composite
def steps(draw):
    """A step of twelve completions of all lengths, some of them empty, and the boundaries of its micro-batches."""
    generator = draw(generators())
    shape = (COMPLETIONS, TOKENS)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    scale = draw(st.sampled_from([0.1, 0.5, 8.0]))
    log_probs = old + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.arange(TOKENS) < torch.randint(0, TOKENS + 1, (COMPLETIONS, 1), generator=generator)
    ref_log_probs = old + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(COMPLETIONS, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["equal", "unequal", "one by one", "whole"]))
    if kind == "unequal":
        boundaries = sorted(draw(st.sets(st.integers(1, COMPLETIONS - 1), min_size=1, max_size=5)))
    else:
        boundaries = list(range(0, COMPLETIONS, {"equal": 3, "one by one": 1, "whole": COMPLETIONS}[kind]))[1:]
    order = torch.randperm(COMPLETIONS, generator=generator)
    weights = draw(st.one_of(st.none(), mean_weights(*shape)))
    totals = StepTotals.of(mask, weights, progress=0.25, reward_mean=0.4, reward_std=0.3)
    ids = {
        "groups": torch.randint(4, (COMPLETIONS,), generator=generator),
        "span_ids": torch.randint(3, shape, generator=generator),
    }
    ids |= transitions(*shape, generator) | {"ref_divergence": (old - ref_log_probs).abs()}
    batch = PolicyBatch(old, mask, advantages, totals, ref_log_probs, mean_weights=weights, **ids)
    return log_probs, batch, order.tensor_split(boundaries)


@each_composition
@given(step=steps(), count=st.sampled_from(COUNTS))
def test_gradients_add_up(objective, step, count):
    log_probs, batch, parts = step
    log_probs, batch = taken(objective, Case(log_probs, batch))
    whole = log_probs.clone().requires_grad_()
    value = objective(whole, batch)
    value.backward()
    counts = {name: count(getattr(batch.totals, name)) for name in ("completions", "tokens")}
    totals = replace(batch.totals, **counts)

    leaf = log_probs.clone().requires_grad_()
    weights = torch.empty_like(log_probs)
    sum_of_values = torch.zeros_like(value)
    batch = with_group_terms(objective, log_probs, batch)
    for rows in parts:
        micro_batch = some_rows(batch, rows, totals=totals)
        part_value = objective(leaf[rows], micro_batch)
        part_value.backward()
        sum_of_values = sum_of_values + part_value.detach()
        weights[rows] = objective.gradient_weights(log_probs[rows], micro_batch).total
    scale = 1 + whole.grad.abs().max()
    for actual in (leaf.grad, weights):
        assert ((actual - whole.grad).abs() <= 1e-10 * scale).all()
    assert (sum_of_values - value).abs() <= 1e-10 * (scale + value.abs())


@given(step=steps())
def test_totals_of_the_micro_batch_would_change_them(step):
    """The property is not vacuous: with its own totals, a single completion counts as a whole step."""
    log_probs, batch, _ = step
    rows = batch.response_mask.any(dim=-1).nonzero().squeeze(-1)[:1]
    if len(rows) == 0 or int(batch.totals.completions) == 1:
        return
    objective = PolicyObjective(GeometricMean())
    whole = objective.gradient_weights(log_probs, batch).completion[rows]
    alone = objective.gradient_weights(log_probs[rows], some_rows(batch, rows, totals=None)).completion
    torch.testing.assert_close(alone, whole * int(batch.totals.completions))
