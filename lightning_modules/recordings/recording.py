"""Recordings as they are read: manifest, optimizer steps, rows and model of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_modules.parquet_files import read_rows
from lightning_modules.recordings.manifest import COMPLETIONS, MODEL, TOKENS, Manifest, StepEntry, checksum
from lightning_modules.recordings.steps import RecordedStep


class Recording:
    """A folder that `aggregate-po record` has written.

    Args:
        folder: the folder.

    Raises:
        FileNotFoundError: the folder is no recording, or a file is missing.
        ValueError: a file is damaged, or the recording has another version of the format.

    Attributes:
        folder: the folder.
        manifest: description of the recording.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"`folder` is {str(folder)!r}, which is no folder; pass one that `aggregate-po record` has written."
            )
        self.manifest = Manifest.read(self.folder)
        missing = [name for name in self.manifest.checksums if not (self.folder / name).is_file()]
        if self.manifest.model_step is not None and not (self.folder / MODEL / "config.json").is_file():
            missing.append(f"{MODEL}/config.json")
        if missing:
            raise FileNotFoundError(
                f"{str(folder)!r} lacks {', '.join(missing)}, which its manifest names; copy the whole folder, or "
                "record again."
            )

    def __len__(self) -> int:
        return len(self.manifest.steps)

    def __iter__(self) -> Iterator[RecordedStep]:
        return map(self.load, self.manifest.steps)

    def load(self, entry: StepEntry) -> RecordedStep:
        """Return an optimizer step.

        Raises:
            ValueError: its file is not the one that was written.
        """
        return RecordedStep.load(self._checked(entry.file))

    def step(self, number: int) -> RecordedStep:
        """Return the optimizer step with this number in its run.

        Raises:
            ValueError: it was not recorded.
        """
        entries = {entry.step: entry for entry in self.manifest.steps}
        if number not in entries:
            raise ValueError(f"`number` is {number}; pass one of the recorded steps, {', '.join(map(str, entries))}.")
        return self.load(entries[number])

    @property
    def completions(self) -> list[dict[str, Any]]:
        """One row for each completion of the rollouts, trained or not."""
        return read_rows(self._checked(COMPLETIONS))

    @property
    def tokens(self) -> list[dict[str, Any]]:
        """One row for each completion in each optimizer step, with lists of one value per token."""
        return read_rows(self._checked(TOKENS))

    @property
    def model_folder(self) -> Path | None:
        """Folder of the policy before the update of `manifest.model_step`; None if it was not recorded."""
        return None if self.manifest.model_step is None else self.folder / MODEL

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        if checksum(path) != self.manifest.checksums.get(name):
            raise ValueError(f"{path}: not the file that was recorded, its checksum differs; copy it again, or record.")
        return path
