"""Graded completions of an evaluation, in one file per batch of problems, so that a killed evaluation can go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_modules.atomic import replacing
from lightning_modules.configuration import changes
from lightning_modules.rewards.verdict import Cause

_SETTINGS = "settings.json"
_BATCHES = "batches"


@dataclass(frozen=True)
class GradedCompletion:
    """A completion with its verdict.

    Args:
        problem: index of the problem in its benchmark.
        greedy: whether the completion is the greedy one; it is sampled otherwise.
        completion: text of the completion.
        value: value of the verdict; None if it failed.
        cause: cause of the failure; None if there is a value.
        extracted: final answer of the completion in one spelling, for the majority vote; None if there is none.
        length: number of tokens, the stop token included.
        truncated: whether the completion reached its maximum length.
    """

    problem: int
    greedy: bool
    completion: str
    value: float | None
    cause: Cause | None
    extracted: str | None
    length: int
    truncated: bool

    @property
    def score(self) -> float:
        """Value of the verdict; 0 if it failed."""
        return 0.0 if self.value is None else self.value


class EvaluationFolder:
    """Output folder of an evaluation: its settings, and the graded completions of each finished batch of problems.

    Args:
        path: path of the folder.
        settings: settings of the evaluation, as plain values.

    Raises:
        ValueError: the folder has batches of an evaluation with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        record = path / _SETTINGS
        if record.exists():
            _require_same(json.loads(record.read_text(encoding="utf-8")), json.loads(json.dumps(settings)), path)
        else:
            path.mkdir(parents=True, exist_ok=True)
            with replacing(record) as scratch:
                scratch.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def has(self, benchmark: str, start: int) -> bool:
        """Return whether the batch of a benchmark that begins with this problem is finished."""
        return self._file(benchmark, start).exists()

    def write(self, benchmark: str, start: int, completions: Sequence[GradedCompletion]) -> None:
        """Write a finished batch atomically."""
        file = self._file(benchmark, start)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch:
            scratch.write_text(
                "".join(json.dumps(asdict(one)) + "\n" for one in completions), encoding="utf-8", newline="\n"
            )

    def read(self, benchmark: str) -> Iterator[GradedCompletion]:
        """Yield the graded completions of the finished batches of a benchmark, in the order of the problems."""
        for file in sorted((self.path / _BATCHES / benchmark).glob("[0-9]*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                yield GradedCompletion(**json.loads(line))

    def _file(self, benchmark: str, start: int) -> Path:
        return self.path / _BATCHES / benchmark / f"{start:06}.jsonl"


def _require_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    differences = list(changes(old, new, "settings", _may_differ))
    if differences:
        found = "; ".join(str(change) for change in differences).replace("`settings.", "`")
        raise ValueError(
            f"`output` is {str(path)!r}, which has an evaluation with other settings: {found}; pass those settings to "
            "continue it, or choose another folder."
        )


def _may_differ(name: str) -> bool:
    """Whether a setting changes nothing in the results, as the arguments of an engine do not."""
    return name.startswith("settings.rollouts.")
