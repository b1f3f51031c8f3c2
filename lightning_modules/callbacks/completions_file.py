"""Files of all completions of a run, and samples of them in the log and in loggers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_modules.callbacks.completion_rows import Row, completion_file, completion_files, rows_of_rollout
from lightning_modules.data.observers import RolloutObserver
from lightning_modules.data.rollout import Rollout
from lightning_modules.distributed import (
    data_parallel_rank,
    data_parallel_size,
    gathered_on_rank_zero,
    tensor_parallel_size,
)
from lightning_modules.parquet_files import require_pyarrow, write_rows
from lightning_modules.validation import require_at_least

_SHOWN_CHARACTERS = 100
_TABLE = "completions"


class CompletionsFile(RolloutObserver):
    """Writes the completions of each rollout to a Parquet file of the run folder, `completions/step-000050.parquet`.

    A file has the completions of all ranks, with prompt, rewards by name, advantage and length, and is named by the
    first optimizer step that trains on them. `read_completions` reads and filters them. Files are written atomically,
    and a resumed run replaces those of the steps that it repeats, so none is missing or double.

    The completions of one prompt are shown in the log now and then, of another prompt each time. Loggers that have a
    method `log_table`, such as that of Weights & Biases, get them as a table for every rollout.

    Args:
        max_gigabytes: Maximum size of all files, in 10^9 bytes; beyond it the oldest are removed, and their number is
            logged as `completions/removed_files`.
        show_every_n_rollouts: Number of rollouts between two samples in the log; with 0 there are none.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a number is out of its range.
    """

    def __init__(self, max_gigabytes: float = 10.0, show_every_n_rollouts: int = 10) -> None:
        require_pyarrow("CompletionsFile", "leave it out of `trainer.callbacks`")
        require_at_least(0, max_gigabytes=max_gigabytes, show_every_n_rollouts=show_every_n_rollouts)
        self.max_gigabytes = max_gigabytes
        self.show_every_n_rollouts = show_every_n_rollouts
        self._rollouts = 0  # seen so far
        self._removed = 0  # files

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of steps that this run repeats under another number."""
        if trainer.is_global_zero and not _writes_nothing(trainer):
            for step, path in completion_files(_folder(trainer)).items():
                # The checkpoint may hold the rollout of the next step, before any of its updates.
                if step > trainer.global_step + 1:
                    path.unlink()

    @override
    def on_rollout(self, trainer: Trainer, rollout: Rollout) -> None:
        """Write the completions of all ranks, and show those of one prompt."""
        names = trainer.datamodule.rewards.names  # type: ignore[attr-defined]  # the one that has made the rollout
        shard, step = (data_parallel_rank(trainer), data_parallel_size(trainer)), trainer.global_step + 1
        gathered = gathered_on_rank_zero(rows_of_rollout(rollout, step, names, *shard))
        number, self._rollouts = self._rollouts, self._rollouts + 1
        if not trainer.is_global_zero or _writes_nothing(trainer):
            return
        rows = [row for rows in gathered[:: tensor_parallel_size(trainer)] for row in rows]
        rows.sort(key=lambda row: (row["group"], row["sample"]))
        path = completion_file(_folder(trainer), step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(rows, path)
        self._remove_oldest(_folder(trainer))
        sample = [row for row in rows if row["group"] == number % (rows[-1]["group"] + 1)]
        if self.show_every_n_rollouts and number % self.show_every_n_rollouts == 0:
            tqdm.write(sample_text(sample))
        _log_table(trainer, sample)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the number of files that were removed so far."""
        pl_module.log("completions/removed_files", float(self._removed))

    def _remove_oldest(self, folder: Path) -> None:
        sizes = {path: path.stat().st_size for path in completion_files(folder).values()}
        for path in list(sizes)[:-1]:
            if sum(sizes.values()) <= self.max_gigabytes * 1e9:
                return
            path.unlink()
            del sizes[path]
            self._removed += 1
            if self._removed == 1:
                rank_zero_info(f"completions take more than {self.max_gigabytes} GB: the oldest are removed.")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of rollouts and of removed files."""
        return {"rollouts": self._rollouts, "removed": self._removed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rollouts, self._removed = state_dict["rollouts"], state_dict["removed"]


def sample_text(rows: Sequence[Row]) -> str:
    """Return the completions of one prompt as lines for the log, each shortened."""
    lines = [f"step {rows[0]['step']}: {_shortened(rows[0]['prompt'])}"]
    for row in rows:
        reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.3g}"
        lines.append(f"  {reward}, {row['length']} tokens: {_shortened(row['completion'])}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    line, half = " ".join(text.split()), _SHOWN_CHARACTERS // 2
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def _log_table(trainer: Trainer, rows: Sequence[Row]) -> None:
    """Give a table to the loggers that take tables."""
    columns = list(rows[0])
    for logger in trainer.loggers:
        if log_table := getattr(logger, "log_table", None):
            log_table(key=_TABLE, columns=columns, data=[list(row.values()) for row in rows], step=trainer.global_step)


def _writes_nothing(trainer: Trainer) -> bool:
    """Whether the run is a trial, `fast_dev_run`, of which Lightning keeps neither logs nor checkpoints."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning's `_init_debugging_flags`


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)
