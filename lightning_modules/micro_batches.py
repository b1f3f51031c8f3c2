"""Completions of one optimiser step, cut into micro-batches of few wasted tokens and about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.rollout_batch import RolloutBatch


@dataclass(frozen=True)
class _Row:
    """A completion, as the forward pass meets it."""

    number: int
    prompt: int
    prompt_length: int
    length: int


def micro_batches(whole: RolloutBatch, rows: Tensor, most: int, token_budget: int | None = None) -> list[Tensor]:
    """Rows of each micro-batch, so that the largest micro-batch is as small as it can be.

    The size of a micro-batch is the number of tokens that the model runs over: its prompts, each once and as long as
    the longest, and its completions, as long as the longest. Completions are sorted by length, which leaves little
    padding, or kept beside those of their prompt, which reads fewer prompts, whichever is smaller.

    Args:
        whole: what the rows are rows of.
        rows: completions of the optimiser step; shape `batch`.
        most: micro-batches at most.
        token_budget: tokens of a micro-batch, where fewer than `most` suffice; they are larger only if `most` are not
            enough.

    Returns:
        `most` tensors or fewer, none of them empty, each in the order of `rows`.
    """
    prompt_lengths, lengths = whole.prompt_mask.sum(dim=-1), whole.completion_mask.sum(dim=-1)
    prompts = whole.prompt_of[rows]
    columns = (rows, prompts, prompt_lengths[prompts], lengths[rows])
    table = [_Row(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    if not table:
        return []
    longest: dict[int, int] = {}
    for row in table:
        longest[row.prompt] = max(longest.get(row.prompt, 0), row.length)
    orders = [
        sorted(table, key=lambda row: (-row.length, row.prompt)),
        sorted(table, key=lambda row: (-longest[row.prompt], row.prompt, -row.length)),
    ]
    cuts = [_smallest_cut(order, most, token_budget or 0) for order in orders]
    best = min(cuts, key=lambda cut: (max(map(_size, cut)), sum(map(_size, cut))))
    return [torch.tensor(sorted(row.number for row in piece), device=rows.device) for piece in best]


def _size(rows: Sequence[_Row]) -> int:
    """Tokens that the model runs over for these completions."""
    prompts = {row.prompt: row.prompt_length for row in rows}
    return len(prompts) * max(prompts.values()) + len(rows) * max(row.length for row in rows)


def _smallest_cut(order: Sequence[_Row], most: int, budget: int) -> list[list[_Row]]:
    """The rows in pieces, at most so many, of the smallest largest size that is not under the budget."""
    too_small, enough = max(budget, _size(order[:1])) - 1, max(budget, _size(order))
    while enough - too_small > 1:
        middle = (enough + too_small) // 2
        if len(_cut(order, middle)) <= most:
            enough = middle
        else:
            too_small = middle
    return _cut(order, enough)


def _cut(order: Sequence[_Row], budget: int) -> list[list[_Row]]:
    """The rows in as few pieces within the budget as their order allows; one that is larger by itself is alone."""
    pieces: list[list[_Row]] = []
    prompts: set[int] = set()
    longest_prompt = longest = 0
    for row in order:
        longest_prompt, longest = max(longest_prompt, row.prompt_length), max(longest, row.length)
        read = len(prompts) + (row.prompt not in prompts)
        if not pieces or read * longest_prompt + (len(pieces[-1]) + 1) * longest > budget:
            pieces.append([])
            prompts, longest_prompt, longest = set(), row.prompt_length, row.length
        prompts.add(row.prompt)
        pieces[-1].append(row)
    return pieces
