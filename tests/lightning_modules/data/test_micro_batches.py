"""Micro-batches: every completion once, few wasted tokens, no larger than they must be."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import PolicyBatch
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.micro_batches import micro_batches
from lightning_modules.model.layouts import PackedSequences, SharedPrompts


def rollout(prompt_lengths, lengths):
    """Completions of these lengths, the same number for each prompt."""
    prompt_ids, prompt_mask = left_padded([[7] * length for length in prompt_lengths])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    group_size = len(lengths) // len(prompt_lengths)
    policy = PolicyBatch(torch.zeros(mask.shape), mask, torch.zeros(len(lengths)))
    prompt_of = torch.arange(len(prompt_lengths)).repeat_interleave(group_size)
    return RolloutBatch(prompt_ids, prompt_mask, prompt_of, mask.long(), mask, policy)


def size(whole, rows, layout=SharedPrompts):
    """Tokens that are really there once the rows are selected."""
    batch = whole.select(torch.as_tensor(rows))
    if layout is PackedSequences:
        return int(batch.prompt_mask[batch.prompt_of].sum() + batch.completion_mask.sum())
    return batch.prompt_ids.numel() + batch.completion_ids.numel()


LAYOUTS = st.sampled_from([SharedPrompts, PackedSequences])


@st.composite
def rollouts(draw, most_prompts=6, most_completions=5):
    prompts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=most_prompts))
    group_size = draw(st.integers(1, most_completions))
    rows = len(prompts) * group_size
    return rollout(prompts, draw(st.lists(st.integers(1, 40), min_size=rows, max_size=rows)))


@given(rollouts(), st.integers(1, 8), LAYOUTS, st.none() | st.integers(1, 300), st.data())
def test_every_completion_is_in_one(whole, most, layout, budget, data):
    rows = torch.tensor(sorted(data.draw(st.sets(st.sampled_from(range(len(whole.prompt_of)))))), dtype=torch.long)
    pieces = micro_batches(whole, rows, most, layout(), budget)
    assert len(pieces) <= most
    assert all(len(piece) for piece in pieces)
    assert sorted(torch.cat([rows[:0], *pieces]).tolist()) == rows.tolist()
    assert all(piece.tolist() == sorted(piece.tolist()) for piece in pieces)


@given(rollouts(3, 3), st.integers(1, 4), LAYOUTS)
def test_the_largest_is_as_small_as_sorting_by_length_or_by_prompt_allows(whole, most, layout):
    """Against every way of cutting the two orders."""
    lengths, prompts = whole.completion_mask.sum(dim=-1).tolist(), whole.prompt_of.tolist()
    longest = {prompt: max(x for x, p in zip(lengths, prompts, strict=True) if p == prompt) for prompt in prompts}
    rows = range(len(lengths))
    orders = [
        sorted(rows, key=lambda row: (-lengths[row], prompts[row])),
        sorted(rows, key=lambda row: (-longest[prompts[row]], prompts[row], -lengths[row])),
    ]
    best = min(
        max(size(whole, order[a:b], layout) for a, b in itertools.pairwise([0, *cuts, len(order)]))
        for order in orders
        for pieces in range(1, min(most, len(order)) + 1)
        for cuts in itertools.combinations(range(1, len(order)), pieces - 1)
    )
    found = micro_batches(whole, torch.arange(len(lengths)), most, layout())
    assert max(size(whole, piece, layout) for piece in found) == best


@given(rollouts(), st.integers(1, 6), LAYOUTS, st.integers(1, 400))
def test_a_budget_is_kept_to_where_enough_micro_batches_are_allowed(whole, most, layout, budget):
    rows = torch.arange(len(whole.prompt_of))
    pieces, tightest = micro_batches(whole, rows, most, layout(), budget), micro_batches(whole, rows, most, layout())
    largest, least = (max(size(whole, piece, layout) for piece in some) for some in (pieces, tightest))
    assert largest <= max(budget, least)
    if size(whole, rows, layout) <= budget:
        assert len(pieces) == 1


def test_worked_example():
    """Two long completions and six short ones: 2 x 20 and 6 x 4 tokens beside the prompts, instead of 4 x 20 twice."""
    whole = rollout([5, 5], [20, 4, 4, 4, 20, 4, 4, 4])
    pieces = micro_batches(whole, torch.arange(8), 2, SharedPrompts())
    assert [piece.tolist() for piece in pieces] == [[0, 4], [1, 2, 3, 5, 6, 7]]
    assert [size(whole, piece) for piece in pieces] == [50, 34]


def test_packed_completions_are_not_padded():
    """10 + 5 tokens, and 5 + 5 x 2; padded, the second completion of 4 tokens would be counted like one of 9."""
    whole = rollout([1] * 8, [9, 1, 1, 1, 1, 1, 4, 4])
    pieces = micro_batches(whole, torch.arange(8), 2, PackedSequences())
    assert [size(whole, piece, PackedSequences) for piece in pieces] == [15, 15]


def test_long_prompts_are_not_read_twice():
    """Sorted by length, each half would read both prompts."""
    whole = rollout([90, 90], [9, 8, 9, 8])
    pieces = micro_batches(whole, torch.arange(4), 2, SharedPrompts())
    assert [piece.tolist() for piece in pieces] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("budget", [None, 10])
def test_no_rows_make_none(budget):
    assert micro_batches(rollout([3], [2]), torch.arange(0), 3, SharedPrompts(), budget) == []
