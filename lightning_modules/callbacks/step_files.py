"""Parquet files of a run folder, one for each of some optimizer steps, bounded in size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.distributed import gathered_on_rank_zero, tensor_parallel_size
from lightning_modules.parquet_files import step_file, step_files, write_rows


class StepFiles:
    """Files of one folder of the run folder, named by optimizer steps; beyond a size the oldest are removed.

    Args:
        folder: name of the folder.
        max_gigabytes: maximum size of all files, in 10^9 bytes; the newest file stays in any case.

    Attributes:
        removed: number of files that were removed so far because of their size.
    """

    def __init__(self, folder: str, max_gigabytes: float) -> None:
        self._folder, self._max_gigabytes = folder, max_gigabytes
        self.removed = 0

    def forget_after(self, step: int, trainer: Trainer) -> None:
        """Remove the files of later steps, which a resumed run repeats."""
        if trainer.is_global_zero and not _writes_nothing(trainer):
            for own, path in step_files(self._in(trainer)).items():
                if own > step:
                    path.unlink()

    def write(self, step: int, rows: Sequence[Mapping[str, Any]], trainer: Trainer) -> list[Any] | None:
        """Write the rows of all ranks, in the order of groups and samples; every rank must call it.

        Args:
            step: optimizer step of the file.
            rows: rows of this rank, with a "group" and a "sample" each.
            trainer: trainer, for its ranks and its folder.

        Returns:
            The rows of all ranks; None where nothing is written: on other ranks than 0, and in a trial.
        """
        gathered = gathered_on_rank_zero(rows)
        if not trainer.is_global_zero or _writes_nothing(trainer):
            return None
        everything = [row for part in gathered[:: tensor_parallel_size(trainer)] for row in part]
        everything.sort(key=lambda row: (row["group"], row["sample"]))
        folder = self._in(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(everything, step_file(folder, step))
        self._remove_oldest(folder)
        return everything

    def _remove_oldest(self, folder: Path) -> None:
        sizes = {path: path.stat().st_size for path in step_files(folder).values()}
        for path in list(sizes)[:-1]:
            if sum(sizes.values()) <= self._max_gigabytes * 1e9:
                return
            path.unlink()
            del sizes[path]
            self.removed += 1
            if self.removed == 1:
                rank_zero_info(f"{self._folder} take more than {self._max_gigabytes} GB: the oldest are removed.")

    def _in(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self._folder


def _writes_nothing(trainer: Trainer) -> bool:
    """Whether the run is a trial, `fast_dev_run`, of which Lightning keeps neither logs nor checkpoints."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning's `_init_debugging_flags`
