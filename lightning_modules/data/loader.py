"""Training data loader over a rollout buffer; one Lightning epoch is one rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_modules.data.buffer import RolloutBuffer
from lightning_modules.micro_batch import MicroBatch


class RolloutLoader:
    """Data loader over the micro-batches of a rollout buffer; one Lightning epoch is one rollout.

    It has a length because Lightning prefetches a batch of loaders without one, which would sample the next rollout
    from a policy that is one step old.

    Args:
        buffer: rollout buffer. It outlives the loader, which Lightning drops at each `validate` and reload, so its
            owner saves its state.
    """

    def __init__(self, buffer: RolloutBuffer) -> None:
        self.buffer = buffer

    def __len__(self) -> int:
        return self.buffer.batches_per_rollout

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.buffer)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the current rollout."""
        return self.buffer.metrics

    @property
    def rest_of_update(self) -> Sequence[MicroBatch]:
        """Micro-batches that follow in the current optimizer step."""
        return self.buffer.rest_of_update

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: with this method Lightning knows that a run can resume within an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the buffer from a checkpoint of 0.1.0, where its state was that of the loader."""
        if state:
            self.buffer.load_state_dict(state)
