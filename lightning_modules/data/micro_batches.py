"""Completions of one optimiser step, cut into micro-batches of few wasted tokens and about equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.batch import Extent, Sequences
from lightning_modules.model.layouts import SequenceLayout


@dataclass(frozen=True)
class _Row:
    """A completion, as the forward pass meets it."""

    number: int
    prompt: int
    prompt_length: int
    length: int


def micro_batches(
    whole: Sequences, rows: Tensor, most: int, layout: SequenceLayout, token_budget: int | None = None
) -> list[Tensor]:
    """Rows of each micro-batch, so that the largest micro-batch is as small as it can be.

    The size of a micro-batch is the number of its tokens in its layout. Completions are sorted by
    length, which leaves little padding, or kept beside those of their prompt, so that fewer prompts are read, whichever
    is smaller.

    Args:
        whole: what the rows are rows of.
        rows: completions of the optimiser step; shape `batch`.
        most: micro-batches at most.
        layout: of each for the forward pass.
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
    cuts = [_smallest_cut(order, most, layout, token_budget or 0) for order in orders]
    best = min(cuts, key=lambda cut: (max(sizes := [layout.size(piece.extent) for piece in cut]), sum(sizes)))
    return [torch.tensor(sorted(row.number for row in piece.rows), device=rows.device) for piece in best]


@dataclass(frozen=True)
class UpdatePlan:
    """Into how many optimizer steps and micro-batches a rollout is split, on each rank.

    Args:
        updates: optimizer steps that a rollout is split into.
        epochs: how often the rollout is used.
        micro_batches: of each optimizer step.
        layout: of the forward pass, which says how large a micro-batch is.
        token_budget: tokens of a micro-batch; about equal micro-batches when None.
    """

    updates: int
    epochs: int
    micro_batches: int
    layout: SequenceLayout
    token_budget: int | None

    def rows(self, sequences: Sequences, rows: Tensor, count: int) -> list[Tensor]:
        """Return the rows of each of `count` micro-batches; the last ones may be empty."""
        split = micro_batches(sequences, rows, count, self.layout, self.token_budget)
        return split + [rows[:0]] * (count - len(split))

    def all_rows(self, sequences: Sequences) -> list[Tensor]:
        """Return the rows of as many micro-batches as an epoch has, for passes over all completions."""
        return self.rows(sequences, torch.arange(len(sequences.completion_ids)), self.updates * self.micro_batches)


def require_division(prompts_per_rollout: int, group_size: int, ranks: int, plan: UpdatePlan) -> None:
    """Check that a rollout divides into updates on each rank, and an update into micro-batches.

    Raises:
        ValueError: it does not.
    """
    parts = ranks * plan.updates
    if prompts_per_rollout % parts:
        raise ValueError(
            f"`prompts_per_rollout` is {prompts_per_rollout}, which {plan.updates} updates on {ranks} data-parallel "
            f"ranks do not divide; pass a multiple of {parts}."
        )
    completions = prompts_per_rollout * group_size // parts
    if plan.micro_batches > completions:
        raise ValueError(
            f"`accumulate_grad_batches` is {plan.micro_batches}, but an update has only {completions} completions on "
            "each rank; pass at most that many."
        )


class _Piece:
    """Completions of one micro-batch, in the making."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.extent = Extent()
        self._prompts: set[int] = set()

    def extent_with(self, row: _Row) -> Extent:
        """Its extent once this completion is in it, too."""
        now = self.extent
        return Extent(
            prompts=now.prompts + (row.prompt not in self._prompts),
            longest_prompt=max(now.longest_prompt, row.prompt_length),
            completions=now.completions + 1,
            longest=max(now.longest, row.length),
            tokens=now.tokens + row.length,
            prompt_tokens=now.prompt_tokens + row.prompt_length,
        )

    def add(self, row: _Row) -> None:
        self.extent = self.extent_with(row)
        self.rows.append(row)
        self._prompts.add(row.prompt)


def _smallest_cut(order: Sequence[_Row], most: int, layout: SequenceLayout, budget: int) -> list[_Piece]:
    """The rows in pieces, at most so many, of the smallest largest size that is not under the budget."""
    single = max(layout.size(_Piece().extent_with(row)) for row in order)
    together = _Piece()
    for row in order:
        together.add(row)
    too_small, enough = max(budget, single) - 1, max(budget, layout.size(together.extent))
    while enough - too_small > 1:
        middle = (enough + too_small) // 2
        if len(_cut(order, layout, middle)) <= most:
            enough = middle
        else:
            too_small = middle
    return _cut(order, layout, enough)


def _cut(order: Sequence[_Row], layout: SequenceLayout, budget: int) -> list[_Piece]:
    """The rows in as few pieces within the budget as their order allows; one that is larger by itself is alone."""
    pieces: list[_Piece] = []
    for row in order:
        if not pieces or layout.size(pieces[-1].extent_with(row)) > budget:
            pieces.append(_Piece())
        pieces[-1].add(row)
    return pieces
