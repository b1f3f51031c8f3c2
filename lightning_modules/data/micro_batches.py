"""Split of the completions of an optimizer step into micro-batches of about equal size with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.batch import Extent
from lightning_modules.micro_batch import ModelInputs
from lightning_modules.model.trained import MicroBatchSize

_WINDOWS = (1, 8)  # numbers of latest micro-batches that a completion may be put into; beyond 8 little is gained


@dataclass(frozen=True)
class _Row:
    """Index, prompt and lengths of a completion."""

    number: int
    prompt: int
    prompt_length: int
    length: int


def micro_batches(
    sequences: ModelInputs, rows: Tensor, max_count: int, layout: MicroBatchSize, token_budget: int | None = None
) -> list[Tensor]:
    """Return the rows of each micro-batch, such that the largest micro-batch is as small as possible.

    The size of a micro-batch is its number of tokens in the layout. Completions are either sorted by length, for little
    padding, or grouped by prompt, so that fewer prompts are processed. In this order each is put into the last
    micro-batch, or into the first of the last eight that has room for it (first-fit decreasing), which wastes less room
    in a packed layout. Of these splits the one with the smallest largest size is returned, up to the token budget, and
    among equals the one with the fewest tokens, and then the fewest micro-batches.

    Args:
        sequences: prompts and completions.
        rows: indices of the completions of the optimizer step; shape `batch`.
        max_count: maximum number of micro-batches.
        layout: layout of the forward pass.
        token_budget: maximum number of tokens of a micro-batch, so that fewer micro-batches may suffice; it is exceeded
            only if `max_count` micro-batches are not enough.

    Returns:
        At most `max_count` tensors of rising indices, none of them empty.
    """
    if max_count == 1 and len(rows):  # nothing to search, and the search takes a tenth of a step of a small model
        return [rows.sort().values]
    prompt_lengths, lengths = sequences.prompt_lengths, sequences.pass_lengths
    prompts = sequences.prompt_of[rows]
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
    budget = token_budget or 0
    splits = [_balanced_split(order, max_count, layout, budget, window) for window in _WINDOWS for order in orders]
    best = min(splits, key=lambda split: _cost(split, layout, budget))
    return [torch.tensor(sorted(row.number for row in part.rows), device=rows.device) for part in best]


@dataclass(frozen=True)
class UpdatePlan:
    """Split of a rollout into optimizer steps and micro-batches on each rank.

    Args:
        updates: number of optimizer steps per epoch over the rollout.
        epochs: number of epochs over the rollout.
        micro_batches: number of micro-batches per optimizer step.
        layout: layout of the forward pass, which determines the size of a micro-batch.
        token_budget: maximum number of tokens of a micro-batch; micro-batches of about equal size when None.
    """

    updates: int
    epochs: int
    micro_batches: int
    layout: MicroBatchSize
    token_budget: int | None

    def rows(self, sequences: ModelInputs, rows: Tensor, count: int) -> list[Tensor]:
        """Return the rows of `count` micro-batches; the last ones may be empty."""
        split = micro_batches(sequences, rows, count, self.layout, self.token_budget)
        return split + [rows[:0]] * (count - len(split))

    def all_rows(self, sequences: ModelInputs) -> list[Tensor]:
        """Return the rows of all completions, in as many micro-batches as an epoch has."""
        return self.rows(sequences, torch.arange(len(sequences.completion_mask)), self.updates * self.micro_batches)


def require_division(prompts_per_rollout: int, group_size: int, ranks: int, plan: UpdatePlan) -> None:
    """Check that a rollout splits evenly into updates on each rank, and an update into micro-batches.

    Raises:
        ValueError: `prompts_per_rollout` is not divisible, or there are no micro-batches, or more than completions.
    """
    if plan.micro_batches < 1:
        raise ValueError(f"`accumulate_grad_batches` is {plan.micro_batches}; pass 1 or more micro-batches.")
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


class _MicroBatch:
    """A micro-batch to which completions are added one by one."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.extent = Extent()
        self._prompts: set[int] = set()

    def extent_with(self, row: _Row) -> Extent:
        """Return the extent of the micro-batch with one more completion."""
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


def _cost(split: Sequence[_MicroBatch], layout: MicroBatchSize, budget: int) -> tuple[int, int, int]:
    """Return the largest size or the budget, the number of tokens, and the number of micro-batches."""
    sizes = [layout.size(part.extent) for part in split]
    return max([*sizes, budget]), sum(sizes), len(sizes)


def _balanced_split(
    order: Sequence[_Row], max_count: int, layout: MicroBatchSize, budget: int, window: int
) -> list[_MicroBatch]:
    """Split the rows into at most `max_count` micro-batches of the smallest sufficient size, or of the budget."""
    largest_row = max(layout.size(_MicroBatch().extent_with(row)) for row in order)
    together = _MicroBatch()
    for row in order:
        together.add(row)
    best, enough = [together], max(budget, layout.size(together.extent))
    too_small = max(budget, largest_row) - 1
    while enough - too_small > 1:
        middle = (enough + too_small) // 2
        split = _greedy_split(order, max_count, layout, middle, window)
        if split is None:
            too_small = middle
        else:
            best, enough = split, middle
    return best


def _greedy_split(
    order: Sequence[_Row], max_count: int, layout: MicroBatchSize, budget: int, window: int
) -> list[_MicroBatch] | None:
    """Put each row in the given order into the first micro-batch with room for it, or else into a new one.

    Only the last `window` micro-batches are tried. A row that exceeds the budget is a micro-batch of its own.

    Returns:
        The micro-batches, None if more than `max_count` are needed.
    """
    parts: list[_MicroBatch] = []
    for row in order:
        fitting = (part for part in parts[-window:] if layout.size(part.extent_with(row)) <= budget)
        part = next(fitting, None)
        if part is None:
            if len(parts) == max_count:
                return None
            part = _MicroBatch()
            parts.append(part)
        part.add(row)
    return parts
