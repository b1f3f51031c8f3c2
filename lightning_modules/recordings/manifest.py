"""Manifest of a recording: what was recorded, by which versions, and the files with their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FILE, CONFIG, COMPLETIONS, TOKENS = "manifest.json", "config.yaml", "completions.parquet", "tokens.parquet"
STEPS, MODEL = "steps", "model"
FORMAT, VERSION = "aggregate_po recording", 1


@dataclass(frozen=True)
class StepEntry:
    """Entry of an optimizer step.

    Args:
        step: number of the optimizer step in its run, from 1.
        rollout: number of its rollout in the recording, from 1.
        update: number of the step among those of its rollout, from 1.
        micro_batches: number of its micro-batches.
        file: name of its file in the folder.
    """

    step: int
    rollout: int
    update: int
    micro_batches: int
    file: str


@dataclass(frozen=True)
class Manifest:
    """Description of a recording, which `manifest.json` holds.

    Args:
        objective: objective that was trained, as text.
        model: model that was trained, as text or as class path with arguments.
        layout: layout of the forward pass, as class path with arguments.
        attn_implementation: attention implementation in transformers; None if transformers chose it.
        precision: precision of the trainer.
        device: device of the policy.
        rollouts: number of rollouts.
        steps: optimizer steps, in order.
        every_completion: whether completions of advantage 0 are in the micro-batches, too.
        model_step: optimizer step before whose update the folder `model` was written; None without that folder.
        trained_parameters: "all", or "adapters" if the weights were frozen under adapters.
        versions: versions of the packages, by name.
        checksums: SHA-256 of each file other than the model, by its name in the folder.
    """

    objective: str
    model: Any
    layout: Any
    attn_implementation: str | None
    precision: str
    device: str
    rollouts: int
    steps: tuple[StepEntry, ...]
    every_completion: bool
    model_step: int | None
    trained_parameters: str = "all"
    versions: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `manifest.json`."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is of another format or version, or damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has no {FILE}, so it is no recording; make one with `aggregate-po record`."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.get("format"), content.get("version")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({error}); record again.") from error
        if found != (FORMAT, VERSION):
            raise ValueError(
                f"{path}: format {found[0]!r}, version {found[1]!r}, but this version of the library reads "
                f"{FORMAT!r}, version {VERSION}; record again, or read it with the library that wrote it."
            )
        try:
            steps = tuple(StepEntry(**entry) for entry in content["steps"])
            known = {name.name for name in fields(cls)}
            return cls(**{name: value for name, value in content.items() if name in known} | {"steps": steps})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: damaged ({error}); record again.") from error


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
