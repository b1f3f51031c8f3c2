"""`metrics.csv`: one row per optimizer step, consistent with the checkpoint that a run resumes from."""

from __future__ import annotations

import csv
import math
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_Row = dict[str, str]


class MetricsFile:
    """CSV file of metrics by optimizer step; each row is on disk as soon as it is appended.

    Damaged lines of an existing file are dropped with a warning that counts them: half lines, lines of NUL or other
    bytes, and steps that do not rise. If more than a half line at the end is damaged, the file is kept as
    `metrics.csv.damaged`.

    Args:
        path: path of the file.
        keep_until: last step to keep; later rows are dropped, because a resumed run writes them again.
        columns: names of the first columns, in place of a header that is damaged; unknown when empty.
    """

    def __init__(self, path: Path, keep_until: int, columns: Sequence[str] = ()) -> None:
        self._path = path
        self._names: list[str] = ["step"]
        rows: list[_Row] = []
        if path.exists():
            self._names, rows, damaged, half = _whole_rows(path, columns)
            if damaged:
                shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
                kept = f"; the file is kept as {path.name}.damaged"
            if damaged or half:
                message = f"{path}: dropped {_counted(damaged + half)}{kept if damaged else ''}."
                warnings.warn(message, stacklevel=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write([row for row in rows if int(row["step"]) <= keep_until])

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._names)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the row of one step; a new metric adds a column, and NaN is an empty cell."""
        cells = {name: "" if math.isnan(value) else repr(value) for name, value in sorted(metrics.items())}
        row = {"step": str(step), **cells}
        new = [name for name in row if name not in self._names]
        if new:
            rows = _whole_rows(self._path, self._names)[1]
            self._names += new
            self._write([*rows, row])
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._names).writerow(row)

    def amend(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to the row of the last step, which is appended if it is missing."""
        rows = _whole_rows(self._path, self._names)[1]
        last = rows[-1] if rows and int(rows[-1]["step"]) == step else {}
        before = {name: float(cell) for name, cell in last.items() if name != "step" and cell}
        if before | dict(metrics) != before:
            self._write([row for row in rows if row is not last])
            self.append(step, before | dict(metrics))

    def _write(self, rows: Iterable[_Row]) -> None:
        scratch = self._path.with_name(f".{self._path.name}.part")
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(rows)
        if self._path.exists() and self._path.read_bytes() == scratch.read_bytes():
            scratch.unlink()
        else:
            scratch.replace(self._path)


def has_steps(path: Path) -> bool:
    """Whether a file has the row of an optimizer step, or lines that may have been one before they were damaged."""
    if not path.exists():
        return False
    _, rows, damaged, _ = _whole_rows(path, ())
    return damaged > 0 or any(int(row["step"]) > 0 for row in rows)


def read_metrics(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Return the steps of a file, and the values of each metric, NaN where a cell is empty; damaged lines are left out.

    A metric without any value is left out too.
    """
    names, rows, _, _ = _whole_rows(path, ())
    values = {name: [float(row[name] or "nan") for row in rows] for name in names if name != "step"}
    steps = [int(row["step"]) for row in rows]
    return steps, {name: cells for name, cells in values.items() if not all(map(math.isnan, cells))}


def _whole_rows(path: Path, columns: Sequence[str]) -> tuple[list[str], list[_Row], int, int]:
    """Return column names, undamaged rows, the number of damaged lines, and 1 if the last line was written in part."""
    *lines, end = path.read_bytes().split(b"\n")  # a kill may truncate the last line
    names, header = list(columns) or ["step"], 0
    first = _cells(lines[0]) if lines else None
    if first and first[0] == "step" and len(set(first)) == len(first) and first[: len(columns)] == list(columns):
        names, header = first, 1
    rows: list[_Row] = []
    for line in lines[header:]:
        row = _row(line, names, bool(header))
        if row is not None and (not rows or int(row["step"]) > int(rows[-1]["step"])):
            rows.append(row)
    return names, rows, len(lines) - header - len(rows), int(bool(end))


def _row(line: bytes, names: Sequence[str], exact: bool) -> _Row | None:
    """Return the row of a line, or None if it is damaged; without a header there may be more cells than names."""
    cells = _cells(line)
    if cells is None or len(cells) < len(names) or (exact and len(cells) > len(names)):
        return None
    try:
        numbers = [int(cells[0]), *(float(cell) for cell in cells[1:] if cell)]
    except ValueError:
        return None
    return dict(zip(names, cells, strict=False)) if numbers[0] >= 0 else None


def _cells(line: bytes) -> list[str] | None:
    """Return the cells of a line, or None if it is not a line of a CSV file."""
    try:
        (cells,) = csv.reader([line.decode("utf-8").removesuffix("\r")], strict=True)
    except (ValueError, csv.Error):
        return None
    return cells if "\0" not in "".join(cells) else None


def _counted(lines: int) -> str:
    return f"{lines} damaged line{'' if lines == 1 else 's'}"
