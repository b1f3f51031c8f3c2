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
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed import DistError
from typing_extensions import override

from lightning_modules.callbacks.checkpoint_files import (
    LAST,
    checksums_of,
    free_path,
    make_newest,
    members,
    publish,
    require_last,
    require_undamaged,
    write_checksums,
)
from lightning_modules.callbacks.slurm import requeue
from lightning_modules.distributed import gathered_on_rank_zero, rank
from lightning_modules.interruption import Interruption, handle, interrupt, restore
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

    After the signal, or SIGTERM, the current optimizer step is finished, a checkpoint is written and the run stops.
    At the time limit a SLURM job is then requeued; with `ckpt_path=last` in its command it resumes from the checkpoint.
    Before the training and after its last checkpoint either signal ends the run at once.

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
        self._time_limit_signal = signal.Signals[time_limit_signal]
        self._previous_handlers: dict[int, Any] = {}
        self._interrupted: int | None = None  # the signal that has interrupted the run outside the training
        self.received: signal.Signals | None = None  # the signal that has ended the training
        self.requeued = False  # whether SLURM will start the job again

    @property
    def out_of_time(self) -> bool:
        """Whether a signal has ended the training."""
        return self.received is not None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to signals from here until `teardown`."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._listen(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note signals from here on, to save before the run stops."""
        super().on_train_start(trainer, pl_module)
        handle(self._on_signal, self._signals)
        if self._interrupted is not None:  # something has caught the exception
            raise Interruption(self._interrupted)
        if trainer.is_global_zero and trainer.ckpt_path is not None and "://" not in str(trainer.ckpt_path):
            make_newest(Path(trainer.ckpt_path), Path(self.dirpath or trainer.default_root_dir))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a completed run; after the signal, requeue the job."""
        if trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, pl_module)
        handle(self._interrupt, self._signals)
        if self.received is not None:
            rank_zero_info(f"{self.received.name}: saved step {trainer.global_step}; resume with `ckpt_path=last`.")
            if self.received == self._time_limit_signal and trainer.is_global_zero:
                self.requeued = requeue()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the process after SIGTERM, with status 143 on rank 0.

        Raises:
            SystemExit: SIGTERM has ended the training, and the job is not queued again.
        """
        # The launcher kills rank 0 if another rank ends with another status than 0.
        if self.received == signal.SIGTERM and not self.requeued:
            raise SystemExit(128 + self.received if trainer.is_global_zero else 0)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers from before the run."""
        super().teardown(trainer, pl_module, stage)
        self._stop_listening()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers after a failure, and explain an interruption or a failed collective."""
        super().on_exception(trainer, pl_module, exception)
        self._stop_listening()
        if isinstance(exception, KeyboardInterrupt):
            self._explain(trainer, exception)
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
        decide = trainer.strategy.reduce_boolean_decision
        if decide(self.out_of_time, all=False):
            at_time_limit = decide(self.received == self._time_limit_signal, all=False)
            self.received = self._time_limit_signal if at_time_limit else signal.SIGTERM
            if trainer.global_step != self._last_global_step_saved:
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

    def _listen(self, trainer: Trainer) -> None:
        """Interrupt the run at SIGTERM and at the time limit, in place of Lightning's handlers."""
        # They would broadcast among the ranks wherever each of them is, save in the middle of a step, and end the
        # process with status 0.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._interrupted = None
        self._previous_handlers = handle(self._interrupt, self._signals)

    def _stop_listening(self) -> None:
        restore(self._previous_handlers)
        self._previous_handlers = {}

    @property
    def _signals(self) -> set[int]:
        return {signal.SIGTERM, self._time_limit_signal}

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        try:
            interrupt(number, frame)
        except Interruption:
            self._interrupted = number
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing is saved here: the signal may arrive in the middle of an optimizer step.
        if self.received is None or number == self._time_limit_signal:
            self.received = signal.Signals(number)

    def _explain(self, trainer: Trainer, interruption: KeyboardInterrupt) -> None:
        """Say how to go on after an interruption that saved nothing, and requeue the job if there is a checkpoint."""
        number = interruption.signal if isinstance(interruption, Interruption) else signal.SIGINT
        saved = (Path(self.dirpath or trainer.default_root_dir) / LAST).exists()
        until = "since the last checkpoint" if saved else "yet, so that it begins at step 0"
        rank_zero_info(f"{number.name}: stopped; resume with `--ckpt_path last`. Nothing was saved {until}.")
        if saved and number == self._time_limit_signal and trainer.is_global_zero:
            requeue()
