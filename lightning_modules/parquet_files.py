"""Parquet files of rows, by pyarrow, which is optional."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aggregate_po.extras import install_command
from lightning_modules.atomic import replacing

_NAME = re.compile(r"step-(\d+)\.parquet")


def step_file(folder: Path, step: int) -> Path:
    """Return the file of an optimizer step in a folder that has one for each of some steps."""
    return folder / f"step-{step:06}.parquet"


def step_files(folder: Path) -> dict[int, Path]:
    """Return the files of a folder by their optimizer step, in its order; empty if there is no such folder."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def has_pyarrow() -> bool:
    """Return whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def require_pyarrow(purpose: str, alternative: str) -> None:
    """Check that pyarrow is installed.

    Args:
        purpose: words for what needs it, the subject of the error message.
        alternative: words for what to do without it.

    Raises:
        ImportError: pyarrow is not installed.
    """
    if not has_pyarrow():
        raise ImportError(
            f"{purpose} needs `pyarrow`, which is not installed; run {install_command('parquet')}, or {alternative}."
        )


def read_rows(path: str | Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file.

    Args:
        path: path of the file.
        columns: columns to read, without those that the file lacks; all when None.

    Raises:
        ValueError: the file is damaged, or is no Parquet file.
    """
    with _readable(path):
        rows: list[dict[str, Any]] = _table(path, columns).to_pylist()
    return rows


def read_lengths(path: str | Path, column: str) -> list[int]:
    """Return the number of entries in each row of a column of lists, without reading them into Python.

    Args:
        path: path of the file.
        column: name of the column; only a file without rows may lack it.

    Raises:
        ValueError: the file is damaged, is no Parquet file, or lacks the column.
    """
    from pyarrow import compute

    with _readable(path):
        table = _table(path, [column])
    if not table.num_rows:
        return []
    if column not in table.column_names:
        raise ValueError(f"{path} has no column {column!r}; pass a file that has it.")
    lengths: list[int] = compute.list_value_length(table[column]).to_pylist()
    return lengths


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Add to an error of reading, or of text that is not UTF-8, which file it is of."""
    import pyarrow as arrow

    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}); write it again.") from None


def _table(path: str | Path, columns: Sequence[str] | None) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path).read(columns)  # without memory mapping and data set discovery: a path is a path


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows to a Parquet file atomically; the columns are those of the first row."""
    import pyarrow as arrow
    from pyarrow import parquet

    with replacing(path) as scratch:
        parquet.write_table(arrow.Table.from_pylist(list(rows)), scratch, compression="zstd")
