"""The training data loader: it makes a rollout when the last one is used up, and knows where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning_modules.batch import RolloutBatch
from lightning_modules.data.resume import share_of_rank
from lightning_modules.distributed import collected_on_first_rank, number_of_ranks, rank


class RolloutLoader:
    """Micro-batches of one rollout after another; one Lightning epoch is one rollout.

    It has a length, because without one Lightning fetches a batch ahead, which would make the next rollout with
    weights that are a step old. It has state, so a checkpoint resumes within a rollout, also with other numbers of
    ranks and micro-batches.

    Args:
        make_rollout: gives the micro-batches of the rollout with the given number, in order.
        batches_per_rollout: how many it gives.
        inner_epochs: how often they go through the rollout.
        batches_per_update: how many make up an optimiser step; a resumed run keeps to its old number when None.
        share: number of this rank's share of the data, and how many there are; one for each rank when None.
    """

    def __init__(
        self,
        make_rollout: Callable[[int], list[RolloutBatch]],
        batches_per_rollout: int,
        inner_epochs: int = 1,
        batches_per_update: int | None = None,
        share: tuple[int, int] | None = None,
    ) -> None:
        self._make_rollout = make_rollout
        self._batches_per_rollout = batches_per_rollout
        self._inner_epochs = inner_epochs
        self._batches_per_update = batches_per_update
        self._share = share or (rank(), number_of_ranks())
        self._rollouts = 0  # made so far
        self._buffer: list[RolloutBatch] = []
        self._cursor = 0  # batches of the buffer that were handed out

    def __len__(self) -> int:
        return self._batches_per_rollout

    def __iter__(self) -> Iterator[RolloutBatch]:
        # Lightning does not run a sized loader to its end, so the next rollout is begun here and not after the loop.
        if self._cursor == len(self._buffer):
            self._buffer = self._make_rollout(self._rollouts)
            self._rollouts += 1
            self._cursor = 0
        while self._cursor < len(self._buffer):
            self._cursor += 1
            yield self._buffer[self._cursor - 1]

    def next_inner_epoch(self) -> list[RolloutBatch]:
        """The batches of the inner epoch that is about to begin; none within one, nor after the last."""
        size = self._batches_per_rollout // self._inner_epochs
        left = self._buffer[self._cursor :]
        return left[:size] if len(left) % size == 0 else []

    def end_rollout(self) -> int:
        """Drop what is left of the rollout, and say how many batches that were."""
        dropped = len(self._buffer) - self._cursor
        self._cursor = len(self._buffer)
        return dropped

    def state_dict(self) -> dict[str, Any]:
        """Rollouts made, and what each share has left of the last one; all ranks must ask, and the first one knows."""
        left = [batch.state_dict() for batch in self._buffer[self._cursor :]]
        partners = number_of_ranks() // self._share[1]  # ranks of one share follow one another
        return {"rollouts": self._rollouts, "left": collected_on_first_rank(left)[::partners]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state_dict` was taken."""
        self._rollouts = state["rollouts"]
        self._buffer = share_of_rank(state["left"], *self._share, self._batches_per_update)
        self._cursor = 0
