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


def size(sequences, rows, layout=SharedPrompts):
    """Tokens that are really there once the rows are selected."""
    batch = sequences.select(torch.as_tensor(rows))
    if layout is PackedSequences:
        return int(batch.prompt_mask[batch.prompt_of].sum() + batch.completion_mask.sum())
    return batch.prompt_ids.numel() + batch.completion_ids.numel()


LAYOUTS = st.sampled_from([SharedPrompts, PackedSequences])


@st.composite
def rollouts(draw, max_prompts=6, max_completions=5):
    prompts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=max_prompts))
    group_size = draw(st.integers(1, max_completions))
    rows = len(prompts) * group_size
    return rollout(prompts, draw(st.lists(st.integers(1, 40), min_size=rows, max_size=rows)))


@given(rollouts(), st.integers(1, 8), LAYOUTS, st.none() | st.integers(1, 300), st.data())
def test_every_completion_is_in_one(sequences, max_count, layout, budget, data):
    rows = torch.tensor(sorted(data.draw(st.sets(st.sampled_from(range(len(sequences.prompt_of)))))), dtype=torch.long)
    parts = micro_batches(sequences, rows, max_count, layout(), budget)
    assert len(parts) <= max_count
    assert all(len(part) for part in parts)
    assert sorted(torch.cat([rows[:0], *parts]).tolist()) == rows.tolist()
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


@given(rollouts(3, 3), st.integers(1, 4), LAYOUTS)
def test_the_largest_is_as_small_as_sorting_by_length_or_by_prompt_allows(sequences, max_count, layout):
    """Against every split of the two orders."""
    lengths, prompts = sequences.completion_mask.sum(dim=-1).tolist(), sequences.prompt_of.tolist()
    longest = {prompt: max(x for x, p in zip(lengths, prompts, strict=True) if p == prompt) for prompt in prompts}
    rows = range(len(lengths))
    orders = [
        sorted(rows, key=lambda row: (-lengths[row], prompts[row])),
        sorted(rows, key=lambda row: (-longest[prompts[row]], prompts[row], -lengths[row])),
    ]
    best = min(
        max(size(sequences, order[a:b], layout) for a, b in itertools.pairwise([0, *bounds, len(order)]))
        for order in orders
        for parts in range(1, min(max_count, len(order)) + 1)
        for bounds in itertools.combinations(range(1, len(order)), parts - 1)
    )
    found = micro_batches(sequences, torch.arange(len(lengths)), max_count, layout())
    # First-fit may do better, since its micro-batches are not contiguous in the order.
    assert max(size(sequences, part, layout) for part in found) <= best


@given(rollouts(), st.integers(1, 6), LAYOUTS, st.integers(1, 400))
def test_a_budget_is_kept_to_where_enough_micro_batches_are_allowed(sequences, max_count, layout, budget):
    rows = torch.arange(len(sequences.prompt_of))
    parts, tightest = (
        micro_batches(sequences, rows, max_count, layout(), budget),
        micro_batches(sequences, rows, max_count, layout()),
    )
    largest, smallest = (max(size(sequences, part, layout) for part in some) for some in (parts, tightest))
    assert largest <= max(budget, smallest)
    if size(sequences, rows, layout) <= budget:
        assert len(parts) == 1


def test_worked_example():
    """Two long completions and six short ones: 2 x 20 and 6 x 4 tokens beside the prompts, instead of 4 x 20 twice."""
    sequences = rollout([5, 5], [20, 4, 4, 4, 20, 4, 4, 4])
    parts = micro_batches(sequences, torch.arange(8), 2, SharedPrompts())
    assert [part.tolist() for part in parts] == [[0, 4], [1, 2, 3, 5, 6, 7]]
    assert [size(sequences, part) for part in parts] == [50, 34]


def test_short_completions_fill_the_room_that_long_ones_leave():
    """6 + 4 and 5 + 3 + 2 tokens with their prompts; split in the order of their lengths, 6 + 5 and 4 + 3 + 2."""
    sequences = rollout([1] * 5, [5, 4, 3, 2, 1])
    for budget, count in ((None, 2), (10, 5)):
        parts = micro_batches(sequences, torch.arange(5), count, PackedSequences(), budget)
        assert [part.tolist() for part in parts] == [[0, 2], [1, 3, 4]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(61, 200))
def test_packing_puts_every_completion_into_one_micro_batch_and_overflows_none(lengths, budget):
    sequences = rollout([1] * len(lengths), lengths)
    parts = micro_batches(sequences, torch.arange(len(lengths)), len(lengths), PackedSequences(), budget)
    sizes = [size(sequences, part, PackedSequences) for part in parts]
    assert max(sizes) <= budget
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(lengths)))
    # The first completion of a micro-batch had no room in the one before.
    assert all(first + second > budget for first, second in itertools.pairwise(sizes))


def test_packed_completions_are_not_padded():
    """10 + 5 tokens, and 5 + 5 x 2; padded, the second completion of 4 tokens would be counted like one of 9."""
    sequences = rollout([1] * 8, [9, 1, 1, 1, 1, 1, 4, 4])
    parts = micro_batches(sequences, torch.arange(8), 2, PackedSequences())
    assert [size(sequences, part, PackedSequences) for part in parts] == [15, 15]


def test_long_prompts_are_not_read_twice():
    """Sorted by length, each half would read both prompts."""
    sequences = rollout([90, 90], [9, 8, 9, 8])
    parts = micro_batches(sequences, torch.arange(4), 2, SharedPrompts())
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("budget", [None, 10])
def test_no_rows_make_none(budget):
    assert micro_batches(rollout([3], [2]), torch.arange(0), 3, SharedPrompts(), budget) == []
