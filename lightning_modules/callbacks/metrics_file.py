"""`metrics.csv`: one row per optimiser step, consistent with the checkpoint that a run resumes from."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """Rows of figures by step, on disk as soon as they are written.

    Args:
        path: the file.
        keep_until: rows after this step are dropped, because a resumed run will make them again.
    """

    def __init__(self, path: Path, keep_until: int) -> None:
        self._path = path
        self._names: list[str] = ["step"]
        rows: list[dict[str, str]] = []
        if path.exists():
            reader = csv.DictReader(_whole_lines(path))
            rows = [row for row in reader if int(row["step"]) <= keep_until]
            self._names = list(reader.fieldnames or self._names)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(rows)

    def append(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the row of one step: a new column for a figure that earlier rows lack, an empty cell for NaN."""
        cells = {name: "" if math.isnan(value) else repr(value) for name, value in sorted(figures.items())}
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


def _whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end; a kill may leave part of the last one."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]
