"""Results of a finished run, each written atomically, and the record of those that are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer

from lightning_modules.atomic import replacing

RESULTS = ("model", "samples.md", "reward.png", "summary.json")
_RECORD = ".results.json"


class RunResults:
    """Results of the last optimizer step of a run, in its folder.

    A hidden file records the step, and which results of it are written. A run that ends in between still owes the
    others, and a resume writes them. After an error the remaining results are written before the error is raised.

    Args:
        folder: run folder.
        trainer: trainer whose optimizer step the results belong to; every rank must make this object.

    Attributes:
        owed: names of the results that are missing, or that belong to another step.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self._folder, self._trainer = folder, trainer
        missing = [] if not trainer.is_global_zero else [name for name in RESULTS if self._is_missing(name)]
        self.owed: list[str] = trainer.strategy.broadcast(missing)
        self._failures: dict[str, Exception] = {}

    def write(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a result atomically on rank 0, if it is owed and what it needs has not failed.

        Args:
            name: name of the result in the run folder.
            write: writes to a path; on other ranks it only takes part in collectives.
        """
        if name not in self.owed or name in self._failures:
            return
        with self.attempt(name):
            if not self._trainer.is_global_zero:
                write(self._folder / name)
                return
            with replacing(self._folder / name) as path:
                write(path)
            self._record([*self._written(), name])

    @contextmanager
    def attempt(self, *names: str) -> Iterator[None]:
        """Note an error within the context as the failure of results."""
        try:
            yield
        except Exception as error:
            self._failures |= dict.fromkeys(names, error)

    def require_all(self) -> None:
        """Raise the first error that a result failed with.

        Raises:
            RuntimeError: a result could not be written.
        """
        for error in self._failures.values():
            checkpoint = self._trainer.ckpt_path or getattr(self._trainer.checkpoint_callback, "last_model_path", "")
            remedy = (
                f"the checkpoint {str(checkpoint)!r} is complete: remove the cause and repeat the command with "
                "`--ckpt_path last`, which writes what is missing."
                if checkpoint
                else "there is no checkpoint to go on from."
            )
            raise RuntimeError(
                f"training has ended at step {self._trainer.global_step}, but {', '.join(self._failures)} could not be "
                f"written ({type(error).__name__}: {error}); {remedy}"
            ) from error

    def _is_missing(self, name: str) -> bool:
        return name not in self._written() or not (self._folder / name).exists()

    def _written(self) -> list[str]:
        try:
            record = json.loads((self._folder / _RECORD).read_text(encoding="utf-8"))
            return [*map(str, record["written"])] if record["step"] == self._trainer.global_step else []
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
            return []

    def _record(self, names: list[str]) -> None:
        with replacing(self._folder / _RECORD) as path:
            path.write_text(json.dumps({"step": self._trainer.global_step, "written": names}), encoding="utf-8")


def forget_results(folder: Path) -> None:
    """Forget which results are written, because training goes on; the results stay until new ones take their place."""
    (folder / _RECORD).unlink(missing_ok=True)
