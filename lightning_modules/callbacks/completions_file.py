"""Files of all completions of a run, and samples of them in the log and in loggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from tqdm.auto import tqdm
from typing_extensions import override

from lightning_modules.callbacks.completion_rows import FOLDER, Row, rows_of_rollout
from lightning_modules.callbacks.step_files import StepFiles
from lightning_modules.data.observers import RolloutObserver
from lightning_modules.data.rollout import Rollout
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.parquet_files import require_pyarrow
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
        self.show_every_n_rollouts = show_every_n_rollouts
        self._files = StepFiles(FOLDER, max_gigabytes)
        self._rollouts = 0  # seen so far

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of steps that this run repeats under another number."""
        # The checkpoint may hold the rollout of the next step, before any of its updates.
        self._files.forget_after(trainer.global_step + 1, trainer)

    @override
    def on_rollout(self, trainer: Trainer, rollout: Rollout) -> None:
        """Write the completions of all ranks, and show those of one prompt."""
        names = trainer.datamodule.rewards.names  # type: ignore[attr-defined]  # the one that has made the rollout
        shard, step = (data_parallel_rank(trainer), data_parallel_size(trainer)), trainer.global_step + 1
        number, self._rollouts = self._rollouts, self._rollouts + 1
        rows = self._files.write(step, rows_of_rollout(rollout, step, names, *shard), trainer)
        if rows is None:
            return
        sample = [row for row in rows if row["group"] == number % (rows[-1]["group"] + 1)]
        if self.show_every_n_rollouts and number % self.show_every_n_rollouts == 0:
            tqdm.write(sample_text(sample))
        _log_table(trainer, sample)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the number of files that were removed so far."""
        pl_module.log("completions/removed_files", float(self._files.removed))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of rollouts and of removed files."""
        return {"rollouts": self._rollouts, "removed": self._files.removed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rollouts, self._files.removed = state_dict["rollouts"], state_dict["removed"]


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
