"""`metrics.csv`: one row per optimizer step, consistent with the checkpoint that a run resumes from."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """CSV file of metrics by optimizer step; each row is on disk as soon as it is appended.

    Args:
        path: path of the file.
        keep_until: last step to keep; later rows are dropped, because a resumed run writes them again.
    """

    def __init__(self, path: Path, keep_until: int) -> None:
        self._path = path
        self._names: list[str] = ["step"]
        rows: list[dict[str, str]] = []
        if path.exists():
            reader = csv.DictReader(_complete_lines(path))
            rows = [row for row in reader if int(row["step"]) <= keep_until]
            self._names = list(reader.fieldnames or self._names)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(rows)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the row of one step; a new metric adds a column, and NaN is an empty cell."""
        cells = {name: "" if math.isnan(value) else repr(value) for name, value in sorted(metrics.items())}
        row = {"step": str(step), **cells}
        new = [name for name in row if name not in self._names]
        if new:
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._names += new
            self._write([*rows, row])
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._names).writerow(row)

    def _write(self, rows: list[dict[str, str]]) -> None:
        scratch = self._path.with_name(f".{self._path.name}.part")
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(rows)
        scratch.replace(self._path)


def _complete_lines(path: Path) -> list[str]:
    """Return the complete lines of the file; a kill may truncate the last one."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]
