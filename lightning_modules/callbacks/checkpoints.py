"""Checkpoints that survive a kill: atomic writes, the last one always whole, one more when time runs out.

Besides what Lightning saves (weights, optimizer, schedules, loops), a checkpoint holds

- `policy_module`, by `PolicyModule`: skipped steps, what the penalties have adapted to, the random state of each rank,
  and with which adapters and micro-batches the run was made;
- the state of the training data loader, by `RolloutLoader`: the number of the rollout, its metrics, the micro-batches
  that each data-parallel rank has left of it, the position in the prompts, and what sampling schemes remember;
- the state of each callback: `RunReport` has the held-out metrics and samples from before the training.

What is sampled ahead is no part of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.distributed import DistError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that an interrupted write never replaces a good checkpoint.

    Lightning's own write goes through the system's temporary folder; where that is another file system, the last
    step is a copy, and a kill during it leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to a local path; a remote one is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.part")
        with scratch.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load from a file.

        Raises:
            ValueError: it is a folder, which a strategy that shards has written.
        """
        if Path(path).is_dir():
            raise ValueError(
                f"`ckpt_path` is {str(path)!r}, a folder of shards; resume it under ModelParallelStrategy, which "
                "wrote it, or have that write one file, `save_distributed_checkpoint: false`."
            )
        return super().load_checkpoint(path, *arguments, **options)


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, every so many optimiser steps and when a signal says that time runs out.

    After the signal the step in hand is finished, the checkpoint written and the run stopped; under SLURM the job is
    queued again, and with `ckpt_path=last` in its command it goes on where it stood.

    Args:
        dirpath: folder of the checkpoint; `checkpoints` in the trainer's root folder without it.
        every_n_train_steps: optimiser steps between checkpoints.
        time_limit_signal: name of the signal, such as SLURM's `--signal=SIGUSR1@90` sends.

    Raises:
        ValueError: there is no signal of that name.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_train_steps: int = 50, time_limit_signal: str = "SIGUSR1"
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        if time_limit_signal not in signal.Signals.__members__:
            raise ValueError(f"`time_limit_signal` is {time_limit_signal!r}; pass the name of a signal, as SIGUSR1.")
        self._signal = signal.Signals[time_limit_signal]
        self._previous_handler: Any = None
        self.out_of_time = False  # whether the signal has come

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for the signal, in place of Lightning's own handler, which would save in the middle of a step."""
        super().on_train_start(trainer, pl_module)
        self._previous_handler = signal.signal(self._signal, self._on_signal)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a run that is complete; after the signal, queue the job again."""
        if trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)
        self._stop_listening()
        if self.out_of_time:
            rank_zero_info(f"{self._signal.name}: saved step {trainer.global_step}; resume with `ckpt_path=last`.")
            if trainer.is_global_zero:
                _requeue()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening after a failure too; where the communication failed, say what that means."""
        super().on_exception(trainer, pl_module, exception)
        self._stop_listening()
        if isinstance(exception, DistError) or (isinstance(exception, RuntimeError) and "/gloo/" in str(exception)):
            exception.add_note(
                f"rank {trainer.global_rank} of {trainer.world_size} waited for another one, which has ended or did "
                "not answer within the `timeout` of the strategy; what it printed last says why. Checkpoints are "
                "whole: repeat the command with `--ckpt_path last`."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save on schedule, and stop after the step in which the signal came."""
        # A run that was resumed would save in the middle of its first step, whose gradients a checkpoint does not hold.
        if not batch.closes_update:
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # A signal reaches the ranks at different moments, and a checkpoint is theirs together.
        if trainer.strategy.reduce_boolean_decision(self.out_of_time, all=False):
            self.out_of_time = True
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            trainer.should_stop = True

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write a folder of shards beside the last one, and only then let `last.ckpt` lead to it."""
        if not getattr(trainer.strategy, "_save_distributed_checkpoint", False):
            super()._save_checkpoint(trainer, filepath)
            return
        link = Path(filepath)
        slots = [link.with_suffix(suffix) for suffix in (".a", ".b")]
        if link.is_symlink() and link.resolve() == slots[0].resolve():
            slots.reverse()
        super()._save_checkpoint(trainer, str(slots[0]))  # the path is that of the first rank
        if trainer.is_global_zero:
            _link(link, slots[0])
            shutil.rmtree(slots[1], ignore_errors=True)

    def _stop_listening(self) -> None:
        if self._previous_handler is not None:
            signal.signal(self._signal, self._previous_handler)
            self._previous_handler = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing is saved here: a signal may come in the middle of an optimiser step.
        self.out_of_time = True


def _link(link: Path, target: Path) -> None:
    """Make `link` lead to its neighbour `target`, in one step where it led to another."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    scratch = link.with_name(f".{link.name}.part")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target.name)
    scratch.replace(link)


def _requeue() -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failure = (result.stderr.strip() or f"exit status {result.returncode}") if result.returncode else None
    except FileNotFoundError as error:
        failure = str(error)
    if failure:
        rank_zero_warn(f"SLURM job {job} could not be queued again: {failure}")
