"""Resharding of the rest of an interrupted rollout to any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lightning_modules.batch import RolloutBatch
from lightning_modules.micro_batch import MicroBatch, inert

State = dict[str, Any]  # `state_dict` of a `MicroBatch`


def resharded_batches(
    remaining: Sequence[Sequence[State]],
    rank: int,
    ranks: int,
    per_update: int | None = None,
    kind: type[MicroBatch] = RolloutBatch,
) -> list[MicroBatch]:
    """Return the remaining micro-batches of one data-parallel rank of the resumed run.

    If the numbers of ranks and micro-batches are unchanged, each rank continues with its own micro-batches. Otherwise
    the completions of each optimizer step are split again: the step keeps its completions and totals, and each
    completion is trained on once.

    Args:
        remaining: remaining micro-batches of each rank of the interrupted run, which stopped after an optimizer step.
        rank: data-parallel rank in the resumed run.
        ranks: number of data-parallel ranks of the resumed run.
        per_update: number of micro-batches of an optimizer step on each rank; unchanged when None.
        kind: class of the micro-batches.
    """
    updates = list(zip(*map(_updates, remaining), strict=True))
    if not updates:
        return []
    saved = len(updates[0][0])
    per_update = per_update or saved
    if (ranks, per_update) == (len(remaining), saved):
        return [kind.from_state_dict(state) for state in remaining[rank]]
    shards = (
        _split_update([state for part in update for state in part], ranks * per_update, kind)[rank * per_update :][
            :per_update
        ]
        for update in updates
    )
    return [batch.replace(closes_update=batch is shard[-1]) for shard in shards for batch in shard]


def _updates(batches: Sequence[State]) -> Iterator[list[State]]:
    """Yield the micro-batches of each optimizer step."""
    update: list[State] = []
    for batch in batches:
        update.append(batch)
        if batch["closes_update"]:
            yield update
            update = []


def _split_update(states: Sequence[State], count: int, kind: type[MicroBatch]) -> list[MicroBatch]:
    """Split the completions of one optimizer step into `count` micro-batches."""
    update = kind.concatenated(states)
    rows = update.policy.response_mask.any(dim=-1).nonzero().squeeze(-1)
    batches = [update.select(part if len(part) else torch.arange(1)) for part in rows.tensor_split(count)]
    for index in range(len(rows), count):
        # No completions are left for these, but every rank must run the same number of micro-batches; `tensor_split`
        # fills the first ones.
        batches[index] = inert(batches[index])
    return batches
