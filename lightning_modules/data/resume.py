"""Resharding of the rest of an interrupted rollout to any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_modules.batch import RolloutBatch, inert

State = dict[str, Any]  # `state_dict` of a `RolloutBatch`


def resharded_batches(
    remaining: Sequence[Sequence[State]], rank: int, ranks: int, per_update: int | None = None
) -> list[RolloutBatch]:
    """Return the remaining micro-batches of one data-parallel rank of the resumed run.

    If the numbers of ranks and micro-batches are unchanged, each rank continues with its own micro-batches. Otherwise
    the completions of each optimizer step are split again: the step keeps its completions and totals, and each
    completion is trained on once.

    Args:
        remaining: remaining micro-batches of each rank of the interrupted run, which stopped after an optimizer step.
        rank: data-parallel rank in the resumed run.
        ranks: number of data-parallel ranks of the resumed run.
        per_update: number of micro-batches of an optimizer step on each rank; unchanged when None.
    """
    updates = list(zip(*map(_updates, remaining), strict=True))
    if not updates:
        return []
    saved = len(updates[0][0])
    per_update = per_update or saved
    if (ranks, per_update) == (len(remaining), saved):
        return [RolloutBatch.from_state_dict(state) for state in remaining[rank]]
    shards = (
        _split_update([state for part in update for state in part], ranks * per_update)[rank * per_update :][
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


def _split_update(states: Sequence[State], count: int) -> list[RolloutBatch]:
    """Split the completions of one optimizer step into `count` micro-batches."""
    update = RolloutBatch.from_state_dict(_concatenated(states))
    rows = update.policy.response_mask.any(dim=-1).nonzero().squeeze(-1)
    batches = [update.select(part if len(part) else torch.arange(1)) for part in rows.tensor_split(count)]
    for index in range(len(rows), count):
        # No completions are left for these, but every rank must run the same number of micro-batches; `tensor_split`
        # fills the first ones.
        batches[index] = inert(batches[index])
    return batches


def _concatenated(states: Sequence[State]) -> State:
    """Concatenate micro-batches with their prompts; fields that are not tensors are taken from the first one."""
    prompts = [len(state["prompt_ids"]) for state in states]
    starts = torch.tensor([0, *prompts[:-1]]).cumsum(dim=0)
    prompt_of = torch.cat([state["prompt_of"] + start for state, start in zip(states, starts, strict=True)])
    return {
        **{name: _concatenated_field(name, [state[name] for state in states]) for name in states[0]},
        "prompt_of": prompt_of,
    }


def _concatenated_field(name: str, values: list[Any]) -> Any:
    """Concatenate the values of one field, padded to the same length."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _concatenated_field(key, [value[key] for value in values]) for key in first}
    if not isinstance(first, Tensor) or first.ndim == 0:
        return first
    if first.ndim == 2:
        width = max(value.shape[1] for value in values)
        missing = [width - value.shape[1] for value in values]
        pad_left = name in ("prompt_ids", "prompt_mask")
        values = [pad(value, (size, 0) if pad_left else (0, size)) for value, size in zip(values, missing, strict=True)]
    return torch.cat(values)
