"""Properties of shapes: padding, empty rows, the order of tokens and the width of the batch change nothing."""

import math
from dataclasses import replace

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import pad

from aggregate_po import PolicyBatch, StepTotals
from tests.contracts.strategies import (
    assert_rows_close,
    batches,
    differentiate,
    each_composition,
    each_order_free_composition,
    generators,
    log_ratios,
    scale_of,
    taken,
)

# The bisection for the exponent compares numbers next to one; where all ratios nearly agree, another order of a sum
# may move it, and the weights by as much as the ratios differ.
REORDERED = 1e-7

TRANSITIONS = ("divergence", "scale", "ref_divergence")


def mapped(batch, per_token, per_completion=lambda advantages: advantages):
    """The batch with its tensors rearranged, which pass through its checks again; same totals."""
    return replace(
        batch,
        old_log_probs=per_token(batch.old_log_probs),
        response_mask=per_token(batch.response_mask),
        advantages=per_completion(batch.advantages),
        ref_log_probs=per_token(batch.ref_log_probs),
        groups=per_completion(batch.groups),
        mean_weights=None if batch.mean_weights is None else per_token(batch.mean_weights),
        span_ids=per_token(batch.span_ids),
        **{name: per_token(getattr(batch, name)) for name in TRANSITIONS},
    )


def assert_same_weights(actual, expected, back):
    """Gradient and weights in `actual`, brought back to the original places by `back`, are those in `expected`."""
    _, gradient, weights = actual
    _, expected_gradient, expected_weights = expected
    # A mean that falls within rounding of a bound may fall on the other side when it is summed in another order.
    assume(torch.equal(back(weights.clipped), expected_weights.clipped))
    assume(torch.equal(back(weights.overflow), expected_weights.overflow))
    scale = scale_of(expected_weights)
    assert_rows_close(back(weights.total), expected_weights.total, REORDERED, scale)
    assert_rows_close(back(gradient), expected_gradient, REORDERED, scale)


@each_composition
@given(case=batches(weighted=True), junk=st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
def test_contents_of_padding_change_nothing(objective, case, junk):
    log_probs, batch = taken(objective, case)
    mask = batch.response_mask
    value, gradient, weights = differentiate(objective, torch.where(mask, log_probs, 0), batch)
    dirty = PolicyBatch(
        old_log_probs=torch.where(mask, batch.old_log_probs, junk),
        response_mask=mask,
        advantages=torch.where(mask.any(dim=-1), batch.advantages, junk),
        totals=batch.totals,
        ref_log_probs=torch.where(mask, batch.ref_log_probs, -junk),
        groups=batch.groups,
        mean_weights=None if batch.mean_weights is None else torch.where(mask, batch.mean_weights, -junk),
        span_ids=torch.where(mask, batch.span_ids, -1),
        **{name: torch.where(mask, getattr(batch, name), -junk) for name in TRANSITIONS},
    )
    dirty_value, dirty_gradient, dirty_weights = differentiate(objective, torch.where(mask, log_probs, junk), dirty)
    assert torch.equal(dirty_value, value)
    assert torch.equal(dirty_gradient, gradient)
    for name, factor in vars(weights).items():
        assert torch.equal(getattr(dirty_weights, name), factor), name
    for nothing in (gradient[~mask], weights.total[~mask]):
        assert (nothing == 0).all()


def counted_anew(batch):
    """The batch with the totals of a step of its own."""
    totals = StepTotals.of(batch.response_mask, batch.mean_weights, progress=0.25, reward_mean=0.4, reward_std=0.3)
    return replace(batch, totals=totals)


@each_composition
@given(case=batches(empty_rows=False, weighted=True), data=st.data())
def test_empty_rows_add_nothing_not_even_to_a_denominator(objective, case, data):
    log_probs, batch = taken(objective, case)
    rows = len(log_probs)
    order = torch.randperm(rows + 2, generator=data.draw(generators()))

    def with_two_rows_more(tensor):
        more = torch.full_like(tensor[:1], tensor.dtype != torch.bool)
        return torch.cat([tensor, more, more])[order]

    def back(tensor):
        return tensor[order.argsort()][:rows]

    # Totals are counted anew, so that a row more would show in them.
    few = counted_anew(batch)
    many = counted_anew(mapped(few, with_two_rows_more, with_two_rows_more))
    expected, actual = (
        differentiate(objective, log_probs, few),
        differentiate(objective, with_two_rows_more(log_probs), many),
    )
    assert_same_weights(actual, expected, back)
    added = order >= rows
    assert (actual[1][added] == 0).all()
    assert (actual[2].total[added] == 0).all()
    assert (actual[2].completion[added] == 0).all()
    size = (scale_of(expected[2]) * log_probs.shape[1]).sum() + expected[0].abs()
    assert (actual[0] - expected[0]).abs() <= REORDERED * size


@each_order_free_composition
@given(case=batches(weighted=True), data=st.data())
def test_permuting_time_permutes_the_weights(objective, case, data):
    """Each completion in an order of its own."""
    log_probs, batch = taken(objective, case)
    order = torch.rand(log_probs.shape, generator=data.draw(generators())).argsort(dim=-1)

    def permuted(tensor):
        return tensor.gather(1, order)

    def back(tensor):
        return tensor.gather(1, order.argsort(dim=-1))

    shuffled = differentiate(objective, permuted(log_probs), mapped(batch, permuted))
    assert_same_weights(shuffled, differentiate(objective, log_probs, batch), back)


@each_composition
@given(case=batches(weighted=True), extra=st.integers(1, 5))
def test_width_of_the_padding_changes_nothing(objective, case, extra):
    log_probs, batch = taken(objective, case)
    width = log_probs.shape[1]

    def widened(tensor):
        return pad(tensor, (0, extra))

    wide = differentiate(objective, widened(log_probs), mapped(batch, widened))
    assert_same_weights(wide, differentiate(objective, log_probs, batch), lambda tensor: tensor[:, :width])
    assert (wide[2].total[:, width:] == 0).all()


@each_composition
@given(size=st.integers(2, 6), data=st.data())
def test_square_batch_is_no_special_case(objective, size, data):
    """With as many completions as tokens, an axis that is broadcast the wrong way round raises no error.

    Each completion alone, padded to another width, must have the weights that it has in the square.
    """
    log_probs = data.draw(log_ratios(size, size))
    generator = data.draw(generators())
    old = -torch.rand(size, size, generator=generator, dtype=torch.float64)
    advantages = torch.randn(size, generator=generator, dtype=torch.float64)
    mask = torch.arange(size) <= torch.arange(size).unsqueeze(-1)
    totals = StepTotals.of(mask, progress=0.25, reward_mean=0.4, reward_std=0.3)
    ids = {"groups": torch.arange(size), "span_ids": torch.arange(size).expand(size, size) // 2}
    steps = {name: torch.rand(size, size, generator=generator, dtype=torch.float64) + 0.1 for name in TRANSITIONS}
    square = PolicyBatch(old, mask, advantages, totals, ref_log_probs=old.flip(0), **ids, **steps)
    value, gradient, weights = differentiate(objective, log_probs, square)
    for row in range(size):
        one = slice(row, row + 1)
        part = mapped(square, lambda tensor, one=one: pad(tensor[one], (0, 1)), lambda tensor, one=one: tensor[one])
        alone = differentiate(objective, pad(log_probs[one], (0, 1)), part)
        in_the_square = replace(
            weights, **{name: factor[one] for name, factor in vars(weights).items() if factor.shape[0] == size}
        )
        assert_same_weights(alone, (value, gradient[one], in_the_square), lambda tensor: tensor[:, :size])


@each_composition
@given(case=batches(weighted=True))
def test_permuting_completions_permutes_their_weights(objective, case):
    log_probs, batch = taken(objective, case)

    def flipped(tensor):
        return tensor.flip(0)

    actual = differentiate(objective, flipped(log_probs), mapped(batch, flipped, flipped))
    assert_same_weights(actual, differentiate(objective, log_probs, batch), flipped)
