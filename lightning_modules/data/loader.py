"""The training data loader: it makes a rollout when the last one is used up, and knows where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_modules.batch import RolloutBatch
from lightning_modules.data.resume import share_of_rank
from lightning_modules.distributed import collected_on_first_rank, number_of_ranks, rank


class Stateful(Protocol):
    """Remembers something from one rollout to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers; tensors, numbers and texts only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@dataclass(frozen=True)
class RolledOut:
    """A rollout that is ready to be trained on.

    Args:
        batches: micro-batches of its optimizer steps, in order.
        metrics: of the rollout, by name; logged with each of its optimizer steps.
    """

    batches: Sequence[RolloutBatch]
    metrics: Mapping[str, float] = field(default_factory=dict)


class RolloutLoader:
    """Micro-batches of one rollout after another; one Lightning epoch is one rollout.

    It has a length, because without one Lightning fetches a batch ahead, which would make the next rollout with
    weights that are a step old. It has state, so a checkpoint resumes within a rollout, also with other numbers of
    ranks and micro-batches.

    Args:
        make_rollout: makes the rollout with the given number.
        batches_per_rollout: micro-batches that it has.
        inner_epochs: how often they go through the rollout.
        batches_per_update: how many make up an optimizer step; a resumed run keeps to its old number when None.
        share: number of this rank's shard of the data, and how many there are; one for each rank when None.
        stages: what remembers something between rollouts, by name.

    Attributes:
        metrics: of the rollout that is trained on.
    """

    def __init__(
        self,
        make_rollout: Callable[[int], RolledOut],
        batches_per_rollout: int,
        inner_epochs: int = 1,
        batches_per_update: int | None = None,
        share: tuple[int, int] | None = None,
        stages: Mapping[str, Stateful] | None = None,
    ) -> None:
        self._make_rollout = make_rollout
        self._batches_per_rollout = batches_per_rollout
        self._inner_epochs = inner_epochs
        self._batches_per_update = batches_per_update
        self._share = share or (rank(), number_of_ranks())
        self._stages = dict(stages or {})
        self._rollouts = 0  # made so far
        self._buffer: list[RolloutBatch] = []
        self._cursor = 0  # batches of the buffer that were handed out
        self.metrics: Mapping[str, float] = {}

    def __len__(self) -> int:
        return self._batches_per_rollout

    def __iter__(self) -> Iterator[RolloutBatch]:
        # Lightning does not run a sized loader to its end, so the next rollout is begun here and not after the loop.
        if self._cursor == len(self._buffer):
            rollout = self._make_rollout(self._rollouts)
            self._buffer, self.metrics = list(rollout.batches), rollout.metrics
            self._rollouts += 1
            self._cursor = 0
        while self._cursor < len(self._buffer):
            self._cursor += 1
            yield self._buffer[self._cursor - 1]

    def next_inner_epoch(self) -> list[RolloutBatch]:
        """Return the batches of the inner epoch that is about to begin; none within one, nor after the last."""
        size = self._batches_per_rollout // self._inner_epochs
        left = self._buffer[self._cursor :]
        return left[:size] if len(left) % size == 0 else []

    def end_rollout(self) -> int:
        """Drop what is left of the rollout, and return how many batches that were."""
        dropped = len(self._buffer) - self._cursor
        self._cursor = len(self._buffer)
        return dropped

    def state_dict(self) -> dict[str, Any]:
        """Return the rollouts made, what each shard has left of the last one, and what the stages remember.

        All ranks must ask, and rank 0 knows what is left.
        """
        left = [batch.state_dict() for batch in self._buffer[self._cursor :]]
        ranks_per_share = number_of_ranks() // self._share[1]  # those of a tensor-parallel group, which are contiguous
        return {
            "rollouts": self._rollouts,
            "left": collected_on_first_rank(left)[::ranks_per_share],
            "metrics": dict(self.metrics),
            "stages": {name: stage.state_dict() for name, stage in self._stages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state_dict` was taken."""
        self._rollouts = state["rollouts"]
        left, self.metrics = _without_metrics(state)
        self._buffer = share_of_rank(left, *self._share, self._batches_per_update)
        self._cursor = 0
        for name, stage in self._stages.items():
            if name in state.get("stages", {}):  # checkpoints of 0.1.0 have none
                stage.load_state_dict(state["stages"][name])


def _without_metrics(state: Mapping[str, Any]) -> tuple[list[list[dict[str, Any]]], Mapping[str, float]]:
    """Return the batches that are left, and the metrics of their rollout, which each batch had until 0.1.0."""
    left = [[dict(batch) for batch in batches] for batches in state["left"]]
    found = [batch.pop("metrics") for batches in left for batch in batches if "metrics" in batch]
    return left, state.get("metrics", found[0] if found else {})
