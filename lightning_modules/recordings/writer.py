"""Writer of recordings: files of optimizer steps and rows, and at the end the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aggregate_po import __version__
from lightning_modules.parquet_files import write_rows
from lightning_modules.recordings.manifest import COMPLETIONS, CONFIG, STEPS, TOKENS, Manifest, StepEntry, checksum
from lightning_modules.recordings.steps import RecordedStep

_PACKAGES = ("torch", "transformers", "lightning")


class RecordingWriter:
    """Writes the files of a recording one after the other, and the manifest at the end.

    Args:
        folder: empty folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: list[StepEntry] = []
        (folder / STEPS).mkdir()

    @property
    def steps(self) -> int:
        """Number of optimizer steps that have been written."""
        return len(self._entries)

    def add(self, step: RecordedStep) -> None:
        """Write an optimizer step to a file of its own."""
        name = f"{STEPS}/step-{step.step:06}.safetensors"
        step.save(self.folder / name)
        self._entries.append(StepEntry(step.step, step.rollout, step.update, len(step.batches), name))

    def finish(
        self,
        completions: Sequence[Mapping[str, Any]],
        tokens: Sequence[Mapping[str, Any]],
        configuration: str | None = None,
        **about: Any,
    ) -> Manifest:
        """Write rows, configuration and manifest, and return the manifest.

        Args:
            completions: one row for each completion of the rollouts.
            tokens: one row for each completion in each optimizer step.
            configuration: content of `config.yaml`; no such file when None.
            about: fields of the manifest other than the steps, the rollouts, the versions and the checksums.
        """
        write_rows(completions, self.folder / COMPLETIONS)
        write_rows(tokens, self.folder / TOKENS)
        files = [*(entry.file for entry in self._entries), COMPLETIONS, TOKENS]
        if configuration is not None:
            (self.folder / CONFIG).write_text(configuration, encoding="utf-8")
            files.append(CONFIG)
        manifest = Manifest(
            rollouts=len({entry.rollout for entry in self._entries}),
            steps=tuple(self._entries),
            versions={"aggregate-po": __version__} | {name: found for name in _PACKAGES if (found := _version(name))},
            checksums={name: checksum(self.folder / name) for name in files},
            **about,
        )
        manifest.write(self.folder)
        return manifest


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
