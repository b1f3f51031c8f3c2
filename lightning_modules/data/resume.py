"""A rollout that a stop has cut short, gone on with by any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_modules.batch import RolloutBatch, inert

State = dict[str, Any]  # a `RolloutBatch`, by its `state_dict`


def share_of_rank(
    left: Sequence[Sequence[State]], rank: int, ranks: int, per_update: int | None = None
) -> list[RolloutBatch]:
    """Micro-batches for one of the ranks that go on.

    As many ranks and micro-batches as there were go on with their own. Otherwise the completions of each optimiser step
    are cut anew: they and the totals of the step stay the same, and each completion is trained on once.

    Args:
        left: what was left on each rank when the run stopped, after a whole optimiser step.
        rank: the one that asks.
        ranks: how many go on.
        per_update: micro-batches of an optimiser step on each rank; as many as there were when None.
    """
    updates = list(zip(*map(_updates, left), strict=True))
    if not updates:
        return []
    saved = len(updates[0][0])
    per_update = per_update or saved
    if (ranks, per_update) == (len(left), saved):
        return [RolloutBatch.from_state_dict(state) for state in left[rank]]
    shares = (
        _cut([state for part in update for state in part], ranks * per_update)[rank * per_update :][:per_update]
        for update in updates
    )
    return [batch.replace(closes_update=batch is share[-1]) for share in shares for batch in share]


def _updates(batches: Sequence[State]) -> Iterator[list[State]]:
    update: list[State] = []
    for batch in batches:
        update.append(batch)
        if batch["closes_update"]:
            yield update
            update = []


def _cut(states: Sequence[State], pieces: int) -> list[RolloutBatch]:
    """The completions of one optimiser step in so many micro-batches."""
    whole = RolloutBatch.from_state_dict(_joined(states))
    rows = whole.policy.response_mask.any(dim=-1).nonzero().squeeze(-1)
    batches = [whole.select(piece if len(piece) else torch.arange(1)) for piece in rows.tensor_split(pieces)]
    for index in range(len(rows), pieces):
        # This rank has no completions left, but every rank runs as many micro-batches; `tensor_split` fills the first.
        batches[index] = inert(batches[index])
    return batches


def _joined(states: Sequence[State]) -> State:
    """One batch of all completions; each brings its prompts, and what is no tensor is that of the first."""
    prompts = [len(state["prompt_ids"]) for state in states]
    starts = torch.tensor([0, *prompts[:-1]]).cumsum(dim=0)
    prompt_of = torch.cat([state["prompt_of"] + start for state, start in zip(states, starts, strict=True)])
    return {**{name: _stacked(name, [state[name] for state in states]) for name in states[0]}, "prompt_of": prompt_of}


def _stacked(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _stacked(key, [value[key] for value in values]) for key in first}
    if not isinstance(first, Tensor) or first.ndim == 0:
        return first
    if first.ndim == 2:
        width = max(value.shape[1] for value in values)
        missing = [width - value.shape[1] for value in values]
        left = name in ("prompt_ids", "prompt_mask")
        values = [pad(value, (size, 0) if left else (0, size)) for value, size in zip(values, missing, strict=True)]
    return torch.cat(values)
