"""Rollout buffer: the current rollout, the position in it, and the number of rollouts made so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_modules.batch import RolloutBatch
from lightning_modules.data.resume import resharded_batches
from lightning_modules.distributed import gathered_on_rank_zero, rank, world_size
from lightning_modules.micro_batch import MicroBatch


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

    batches: Sequence[MicroBatch]
    metrics: Mapping[str, float] = field(default_factory=dict)


class RolloutBuffer:
    """Holds the current rollout, and makes a new one when it is used up.

    Its position is counted in optimizer steps that were made. A checkpoint contains no gradients, so it repeats an
    update of which only some micro-batches were computed, whichever hook saves it.

    Args:
        make_rollout: makes the rollout with the given number.
        batches_per_rollout: number of micro-batches of a rollout, over all inner epochs.
        inner_epochs: number of epochs over each rollout.
        batches_per_update: number of micro-batches of an optimizer step; a resumed run keeps its number when None.
        shard: data-parallel rank and number of data-parallel ranks; those of the default process group when None.
        stages: objects with state that is saved with that of the buffer, by name.
        optimizer_steps: returns the number of optimizer steps made so far, such as `global_step` of a trainer; when
            None, a step counts as made once its last micro-batch is yielded.
        kind: class of the micro-batches.

    Attributes:
        batches_per_rollout: number of micro-batches of a rollout, over all inner epochs.
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
        optimizer_steps: Callable[[], int] | None = None,
        kind: type[MicroBatch] = RolloutBatch,
    ) -> None:
        self.batches_per_rollout = batches_per_rollout
        self._make_rollout = make_rollout
        self._inner_epochs = inner_epochs
        self._batches_per_update = batches_per_update
        self._shard = shard or (rank(), world_size())
        self._stages = dict(stages or {})
        self._kind = kind
        self._optimizer_steps = optimizer_steps or self._yielded_updates
        self._rollouts = 0  # number of rollouts made so far
        self._batches: list[MicroBatch] = []
        self._cursor = 0  # number of batches that have been yielded
        self._first_step: int | None = None  # number of optimizer steps before the first batch; None before it
        self.metrics: Mapping[str, float] = {}

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the rest of the current rollout, or the next one."""
        self._cursor = self._trained
        if self._cursor == len(self._batches):
            self._advance()
        if self._first_step is None:
            self._first_step = self._optimizer_steps()
        while self._cursor < len(self._batches):
            self._cursor += 1
            yield self._batches[self._cursor - 1]

    def _advance(self) -> None:
        """Make the next rollout; if that fails, the stages are as before, so that it can be repeated."""
        states = self._stage_states()
        try:
            rollout = self._make_rollout(self._rollouts)
        except BaseException:
            self._load_stages(states)
            raise
        self._batches, self.metrics = list(rollout.batches), rollout.metrics
        self._cursor, self._first_step = 0, None
        self._rollouts += 1

    @property
    def _trained(self) -> int:
        """Number of micro-batches whose optimizer step was made."""
        steps = 0 if self._first_step is None else self._optimizer_steps() - self._first_step
        ends = [number for number, batch in enumerate(self._batches, start=1) if batch.closes_update]
        return [0, *ends][min(steps, len(ends))]

    def _yielded_updates(self) -> int:
        return sum(batch.closes_update for batch in self._batches[: self._cursor])

    @property
    def position(self) -> tuple[int, int]:
        """Number of completed rollouts, and number of micro-batches used of the next one."""
        trained = self._trained
        if trained == len(self._batches):
            return self._rollouts, 0
        return self._rollouts - 1, self.batches_per_rollout - (len(self._batches) - trained)

    @property
    def rest_of_update(self) -> list[MicroBatch]:
        """Micro-batches after the one yielded last that belong to the same optimizer step."""
        closed = [batch.closes_update for batch in self._batches]
        if not self._cursor or closed[self._cursor - 1]:
            return []
        return self._batches[self._cursor : closed.index(True, self._cursor) + 1]

    def next_inner_epoch(self) -> list[MicroBatch]:
        """Return the batches of the next inner epoch at its start; empty within an epoch and after the last one."""
        size = self.batches_per_rollout // self._inner_epochs
        remaining = self._batches[self._cursor :]
        return remaining[:size] if len(remaining) % size == 0 else []

    def end_rollout(self) -> int:
        """Drop the remaining batches of the rollout, and return their number."""
        dropped = len(self._batches) - self._cursor
        del self._batches[self._cursor :]
        return dropped

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rollouts, the remaining batches of every shard, and the states of the stages.

        Every rank must call it; the remaining batches are on rank 0 only.
        """
        remaining = [batch.state_dict() for batch in self._batches[self._trained :]]
        ranks_per_shard = world_size() // self._shard[1]  # those of a tensor-parallel group, which are contiguous
        return {
            "rollouts": self._rollouts,
            "left": gathered_on_rank_zero(remaining)[::ranks_per_shard],
            "metrics": dict(self.metrics),
            "stages": self._stage_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the position within the rollout, and the states of the stages."""
        self._rollouts = state["rollouts"]
        remaining, self.metrics = _without_metrics(state)
        self._batches = resharded_batches(remaining, *self._shard, self._batches_per_update, self._kind)
        self._cursor, self._first_step = 0, None
        self._load_stages(state.get("stages", {}))  # checkpoints of 0.1.0 have none

    def batches_left(self, state: Mapping[str, Any]) -> int:
        """Return the number of micro-batches, of the size of this run, that a saved rollout has left."""
        left = state["left"][0]
        updates = sum(batch["closes_update"] for batch in left)
        return updates * self._batches_per_update if self._batches_per_update else len(left)

    def _stage_states(self) -> dict[str, Any]:
        return {name: stage.state_dict() for name, stage in self._stages.items()}

    def _load_stages(self, states: Mapping[str, Any]) -> None:
        for name, stage in self._stages.items():
            if name in states:
                stage.load_state_dict(states[name])


def saved_position(checkpoint: Mapping[str, Any], owner: str, buffer: RolloutBuffer) -> tuple[int, int]:
    """Return the number of rollouts that a saved run has completed, and of micro-batches used of the next one.

    Args:
        checkpoint: checkpoint of Lightning.
        owner: name under which a checkpoint stores the state of the buffer.
        buffer: buffer of the resumed run, for its numbers of micro-batches.

    Raises:
        ValueError: the run has made optimizer steps, but the checkpoint has no buffer under that name.
    """
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")  # has the state until 0.1.0
    state = checkpoint[owner]["buffer"] if owner in checkpoint else loaders and loaders[0]
    if not state:
        _require_no_steps(checkpoint, owner)
        return 0, 0
    remaining = buffer.batches_left(state)
    # A resumed run with smaller rollouts trains on the rest of the old one in several epochs.
    return state["rollouts"] - bool(remaining), max(buffer.batches_per_rollout - remaining, 0) if remaining else 0


def _require_no_steps(checkpoint: Mapping[str, Any], owner: str) -> None:
    """Check that a checkpoint without a position is from before the first rollout."""
    if not checkpoint["global_step"]:
        return
    others = [name for name, state in checkpoint.items() if isinstance(state, Mapping) and "buffer" in state]
    held = f"the rollouts of the data module {others[0]}" if others else "no rollouts"
    raise ValueError(
        f"`ckpt_path` holds {held}, and none of {owner}, the one to resume with; pass a data module of the class that "
        "the run had, under the same name, or begin a new run in another folder."
    )


def _without_metrics(state: Mapping[str, Any]) -> tuple[list[list[dict[str, Any]]], Mapping[str, float]]:
    """Return the remaining batches, and the metrics of the rollout; until 0.1.0 each batch had a copy of these."""
    remaining = [[dict(batch) for batch in batches] for batches in state["left"]]
    copies = [batch.pop("metrics") for batches in remaining for batch in batches if "metrics" in batch]
    return remaining, state.get("metrics", copies[0] if copies else {})
