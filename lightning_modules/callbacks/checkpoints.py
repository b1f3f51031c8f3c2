"""Fault-tolerant checkpoints: atomic writes, and a last checkpoint when the time limit of the job approaches.

Besides the state that Lightning saves (weights, optimizer, schedules, loops), a checkpoint contains

- `policy_module`, written by `PolicyModule`: skipped steps, states of the adaptive penalties, the random state of each
  rank, and the shape of the adapters;
- the state of the data module, written by `RolloutBuffer`: the number of the rollout, its metrics, the remaining
  micro-batches of each data-parallel rank, the position in the prompts, and the states of sampling schemes;
- the state of each callback: `RunReport` saves the held-out metrics and samples from before the training.

Completions that are sampled ahead are not saved.
"""

from __future__ import annotations

import os
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
from typing_extensions import override

from lightning_modules.callbacks.checkpoint_files import (
    checksums_of,
    free_path,
    make_newest,
    members,
    publish,
    require_last,
    require_undamaged,
    write_checksums,
)
from lightning_modules.distributed import gathered_on_rank_zero, rank
from lightning_modules.validation import require_at_least


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes atomically, so that an interrupted write never replaces a good checkpoint.

    It writes to a file next to the target and renames it. Lightning writes to the temporary folder of the system; if
    that is on another file system, its last step is a copy, and a kill during the copy leaves a truncated file.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save atomically to a local path, or with the method of Lightning to a remote one."""
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

    @override
    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load a checkpoint from a file.

        Raises:
            ValueError: `path` is a folder, written by a sharding strategy, or the file is damaged.
        """
        if rank() == 0 and "://" not in str(path) and not Path(path).is_dir():
            require_undamaged(Path(path))
        if Path(path).is_dir():
            raise ValueError(
                f"`ckpt_path` is {str(path)!r}, a folder of shards; resume it under ModelParallelStrategy, which "
                "wrote it, or have that write one file, `save_distributed_checkpoint: false`."
            )
        return super().load_checkpoint(path, *arguments, **options)


class RunCheckpoint(ModelCheckpoint):
    """Saves a checkpoint at regular intervals, and when a signal announces the time limit of the job.

    The checkpoint of step 50 is `step-50.ckpt`, with its checksums in `step-50.ckpt.sha256`, and `last.ckpt` is a link
    to the newest one.

    After the signal the current optimizer step is finished, a checkpoint is written and the run stops. Under SLURM the
    job is then requeued; with `ckpt_path=last` in its command it resumes from the checkpoint.

    Args:
        dirpath: Folder of the checkpoint; `checkpoints` in `trainer.default_root_dir` by default.
        every_n_train_steps: Number of optimizer steps between two checkpoints.
        keep_last: Number of checkpoints to keep, the newest ones; while one is written there is one more.
        time_limit_signal: Name of the signal that announces the time limit, such as SIGUSR1 for `--signal=SIGUSR1@90`
            of SLURM.

    Raises:
        ValueError: there is no signal of that name, or a number is less than 1.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 50,
        keep_last: int = 2,
        time_limit_signal: str = "SIGUSR1",
    ) -> None:
        require_at_least(1, every_n_train_steps=every_n_train_steps, keep_last=keep_last)
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        if time_limit_signal not in signal.Signals.__members__:
            raise ValueError(
                f"`time_limit_signal` is {time_limit_signal!r}; pass the name of a signal, such as SIGUSR1."
            )
        self.keep_last = keep_last
        self._signal = signal.Signals[time_limit_signal]
        self._previous_handler: Any = None
        self.out_of_time = False  # whether the signal has arrived

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the signal handler of Lightning, which would save in the middle of a step."""
        super().on_train_start(trainer, pl_module)
        self._previous_handler = signal.signal(self._signal, self._on_signal)
        if trainer.is_global_zero and trainer.ckpt_path is not None and "://" not in str(trainer.ckpt_path):
            make_newest(Path(trainer.ckpt_path))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a completed run; after the signal, requeue the job."""
        if trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)
        self._restore_handler()
        if self.out_of_time:
            rank_zero_info(f"{self._signal.name}: saved step {trainer.global_step}; resume with `ckpt_path=last`.")
            if trainer.is_global_zero:
                _requeue()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handler after a failure, and explain a failed collective."""
        super().on_exception(trainer, pl_module, exception)
        self._restore_handler()
        if isinstance(exception, DistError) or (isinstance(exception, RuntimeError) and "/gloo/" in str(exception)):
            exception.add_note(
                f"rank {trainer.global_rank} of {trainer.world_size} waited for another rank, which has ended or did "
                "not answer within the `timeout` of the strategy; its last output says why. Checkpoints are complete: "
                "repeat the command with `--ckpt_path last`."
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save on schedule, and stop after the step in which the signal arrived."""
        # A resumed run would save in the middle of its first step, and repeat the step after another resume.
        if not batch.closes_update:
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # The signal reaches the ranks at different times, but they must save the checkpoint together.
        if trainer.strategy.reduce_boolean_decision(self.out_of_time, all=False):
            self.out_of_time = True
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            trainer.should_stop = True

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write the checkpoint under the name of its step, list its checksums, and point `last.ckpt` to it."""
        sharded = getattr(trainer.strategy, "_save_distributed_checkpoint", False)
        # Another plugin may write elsewhere, or later.
        if "://" in filepath or not (sharded or isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)):
            super()._save_checkpoint(trainer, filepath)
            return
        path = trainer.strategy.broadcast(free_path(Path(filepath).parent, trainer.global_step))
        super()._save_checkpoint(trainer, str(path))
        # The ranks read a folder of shards together.
        files = trainer.strategy.broadcast(members(path))[trainer.global_rank :: trainer.world_size]
        checksums = gathered_on_rank_zero(checksums_of(path, files))
        if trainer.is_global_zero:
            write_checksums(path, {name: value for part in checksums for name, value in part.items()})
            publish(path, self.keep_last)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Check the last checkpoint before it is loaded.

        Raises:
            ValueError: the checkpoint is missing or damaged, but the folder has others.
        """
        folder = str(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        if trainer.is_global_zero and "://" not in folder:
            require_last(Path(folder))
        return super()._find_last_checkpoints(trainer)

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(self._signal, self._previous_handler)
            self._previous_handler = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing is saved here: the signal may arrive in the middle of an optimizer step.
        self.out_of_time = True


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
        rank_zero_warn(f"SLURM job {job} could not be requeued: {failure}")
