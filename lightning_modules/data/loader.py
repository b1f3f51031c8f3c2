"""Stateful training data loader, which makes a new rollout when the previous one is used up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_modules.batch import RolloutBatch
from lightning_modules.data.resume import resharded_batches
from lightning_modules.distributed import gathered_on_rank_zero, rank, world_size


class Stateful(Protocol):
    """An object whose state is saved in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors, numbers and strings only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class PreparedRollout:
    """A rollout that is split into micro-batches.

    Args:
        batches: micro-batches of all optimizer steps, in order.
        metrics: metrics of the rollout by name, logged with each of its optimizer steps.
    """

    batches: Sequence[RolloutBatch]
    metrics: Mapping[str, float] = field(default_factory=dict)


class RolloutLoader:
    """Data loader over the micro-batches of successive rollouts; one Lightning epoch is one rollout.

    It has a length because Lightning prefetches a batch of loaders without one, which would sample the next rollout
    from a policy that is one step old. It is stateful, so a checkpoint resumes within a rollout, even with a different
    number of ranks or micro-batches.

    Args:
        make_rollout: makes the rollout with the given number.
        batches_per_rollout: number of micro-batches of a rollout, over all inner epochs.
        inner_epochs: number of epochs over each rollout.
        batches_per_update: number of micro-batches of an optimizer step; a resumed run keeps its number when None.
        shard: data-parallel rank and number of data-parallel ranks; those of the default process group when None.
        stages: objects with state that is saved with that of the loader, by name.

    Attributes:
        metrics: metrics of the current rollout.
    """

    def __init__(
        self,
        make_rollout: Callable[[int], PreparedRollout],
        batches_per_rollout: int,
        inner_epochs: int = 1,
        batches_per_update: int | None = None,
        shard: tuple[int, int] | None = None,
        stages: Mapping[str, Stateful] | None = None,
    ) -> None:
        self._make_rollout = make_rollout
        self._batches_per_rollout = batches_per_rollout
        self._inner_epochs = inner_epochs
        self._batches_per_update = batches_per_update
        self._shard = shard or (rank(), world_size())
        self._stages = dict(stages or {})
        self._rollouts = 0  # number of rollouts made so far
        self._buffer: list[RolloutBatch] = []
        self._cursor = 0  # number of batches of the buffer that have been yielded
        self.metrics: Mapping[str, float] = {}

    def __len__(self) -> int:
        return self._batches_per_rollout

    def __iter__(self) -> Iterator[RolloutBatch]:
        # Lightning does not exhaust a sized loader, so the next rollout is made here and not after the loop.
        if self._cursor == len(self._buffer):
            rollout = self._make_rollout(self._rollouts)
            self._buffer, self.metrics = list(rollout.batches), rollout.metrics
            self._rollouts += 1
            self._cursor = 0
        while self._cursor < len(self._buffer):
            self._cursor += 1
            yield self._buffer[self._cursor - 1]

    def next_inner_epoch(self) -> list[RolloutBatch]:
        """Return the batches of the next inner epoch at its start; empty within an epoch and after the last one."""
        size = self._batches_per_rollout // self._inner_epochs
        remaining = self._buffer[self._cursor :]
        return remaining[:size] if len(remaining) % size == 0 else []

    def end_rollout(self) -> int:
        """Drop the remaining batches of the rollout, and return their number."""
        dropped = len(self._buffer) - self._cursor
        self._cursor = len(self._buffer)
        return dropped

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rollouts, the remaining batches of every shard, and the states of the stages.

        Every rank must call it; the remaining batches are on rank 0 only.
        """
        remaining = [batch.state_dict() for batch in self._buffer[self._cursor :]]
        ranks_per_shard = world_size() // self._shard[1]  # those of a tensor-parallel group, which are contiguous
        return {
            "rollouts": self._rollouts,
            "left": gathered_on_rank_zero(remaining)[::ranks_per_shard],
            "metrics": dict(self.metrics),
            "stages": {name: stage.state_dict() for name, stage in self._stages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the position within the rollout, and the states of the stages."""
        self._rollouts = state["rollouts"]
        remaining, self.metrics = _without_metrics(state)
        self._buffer = resharded_batches(remaining, *self._shard, self._batches_per_update)
        self._cursor = 0
        for name, stage in self._stages.items():
            if name in state.get("stages", {}):  # checkpoints of 0.1.0 have none
                stage.load_state_dict(state["stages"][name])


def _without_metrics(state: Mapping[str, Any]) -> tuple[list[list[dict[str, Any]]], Mapping[str, float]]:
    """Return the remaining batches, and the metrics of the rollout; until 0.1.0 each batch had a copy of these."""
    remaining = [[dict(batch) for batch in batches] for batches in state["left"]]
    copies = [batch.pop("metrics") for batches in remaining for batch in batches if "metrics" in batch]
    return remaining, state.get("metrics", copies[0] if copies else {})
