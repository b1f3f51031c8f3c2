"""Data module that owns a rollout buffer, so that the position in the rollouts outlives Lightning's data loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from typing_extensions import override

from aggregate_po import PolicyObjective
from lightning_modules.batch import Evaluation
from lightning_modules.data.buffer import RolloutBuffer, saved_position
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.loops import continue_run
from lightning_modules.micro_batch import MicroBatch


class BufferedDataModule(LightningDataModule):
    """Data module that owns a rollout buffer: the loader over it, its state in checkpoints, and its position.

    Subclass requirements: implement `new_buffer`, and call `setup` of this class.

    Attributes:
        keeps_every_completion: whether micro-batches have completions without a gradient, too, for a recording.
    """

    keeps_every_completion = False

    def __init__(self) -> None:
        super().__init__()
        self._buffer: RolloutBuffer | None = None

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer; pass it to Trainer.fit or Trainer.validate.")
        return self.trainer

    def keeps_all(self, objective: PolicyObjective) -> bool:
        """Whether completions of advantage 0 are in the micro-batches of an objective."""
        return self.keeps_every_completion or objective.trains_every_completion

    @abstractmethod
    def new_buffer(self, trainer: Trainer) -> RolloutBuffer:
        """Return a buffer that begins with the first rollout."""

    @property
    def buffer(self) -> RolloutBuffer:
        """The rollout buffer of the run.

        Raises:
            RuntimeError: no training has been set up.
        """
        if self._buffer is None:
            raise RuntimeError("the data module has no rollouts yet; pass it to Trainer.fit.")
        return self._buffer

    @override
    def setup(self, stage: str) -> None:
        """Make a buffer at the beginning of a run; a trainer that has made steps continues its run."""
        if stage != "fit" or self.trainer is None:
            return
        if self._buffer is None or self.trainer.global_step == 0:
            self._buffer = self.new_buffer(self.trainer)
        else:
            continue_run(self.trainer, *self._buffer.position)

    @override
    def train_dataloader(self) -> RolloutLoader:
        """Return the data loader over successive rollouts."""
        return RolloutLoader(self.buffer)

    @override
    def transfer_batch_to_device(
        self, batch: MicroBatch | Evaluation, device: torch.device, dataloader_idx: int
    ) -> MicroBatch | Evaluation:
        return batch.to(device) if isinstance(batch, MicroBatch) else batch

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the buffer; every rank must call it."""
        return {} if self._buffer is None else {"buffer": self._buffer.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the buffer of a run that is resumed; an evaluation leaves it alone."""
        if self.trainer is not None and self.trainer.training:
            self.buffer.load_state_dict(state_dict["buffer"])

    def position(self, checkpoint: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """Return the number of completed rollouts, and the number of micro-batches used of the next one.

        Args:
            checkpoint: checkpoint whose position is returned; that of this run when None.
        """
        if checkpoint is None:
            return self.buffer.position
        return saved_position(checkpoint, type(self).__qualname__, self.buffer)
