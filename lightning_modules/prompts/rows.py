"""Rows of a file: JSON Lines, JSON, CSV or Parquet, each with its place for error messages."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_modules.prompts.base import short
from lightning_modules.prompts.json_lines import parsed
from lightning_modules.prompts.parquet import MAGIC, rows_of_parquet
from lightning_modules.prompts.text_files import first_bytes, numbered_lines, text_of

_COMPRESSED = (".gz", ".bz2", ".xz")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """A row of a data set.

    Attributes:
        place: file and number of the row, for error messages.
        values: values by column.
    """

    place: str
    values: Mapping[str, Any]


def file_type(path: str) -> str:
    """Return the last suffix of a file's name, in lower case, without that of a compression."""
    suffixes = [suffix for suffix in map(str.lower, Path(path).suffixes) if suffix not in _COMPRESSED]
    return suffixes[-1] if suffixes else ""


def rows_of_file(path: str) -> Iterator[Row]:
    """Yield the rows of a file.

    A Parquet file is told by its first bytes, a CSV or TSV file by its suffix, and a JSON array by its bracket; other
    files are read as JSON Lines. Text files may be compressed by gzip, bzip2 or xz. Cells of CSV stay texts.

    Raises:
        ImportError: pyarrow is not installed, and the file is a Parquet file.
        ValueError: the file is damaged, or a row is not a mapping; the message gives its number.
    """
    if first_bytes(path, len(MAGIC)) == MAGIC:
        yield from (Row(_numbered(path, number), row) for number, row in enumerate(rows_of_parquet(path)))
    elif file_type(path) in _DELIMITERS:
        yield from _rows_of_csv(path, _DELIMITERS[file_type(path)])
    elif (text := text_of(path)).lstrip()[:1] == "[":
        for number, row in enumerate(parsed(text, path)):
            yield _row(_numbered(path, number), row)
    else:
        for number, line in numbered_lines(text):
            place = f"{path}, line {number}"
            yield _row(place, parsed(line, place))


def _numbered(path: str, number: int) -> str:
    return f"{path}, row {number} (from 0)"


def _row(place: str, row: object) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: found {short(row)}, which is no JSON object; write an object with named fields.")
    return Row(place, row)


def _rows_of_csv(path: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text_of(path), newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    end = 0
    for cells in _cells(path, reader):
        place, end = f"{path}, line {end + 1}", reader.line_num
        if not any(cells):
            continue
        if names is None:
            names = _header(place, cells)
        elif len(cells) != len(names):
            raise ValueError(
                f"{place}: found {len(cells)} cells for the {len(names)} columns of the first line; put a cell that "
                f"has {delimiter!r} or a line break in double quotes."
            )
        else:
            yield Row(place, dict(zip(names, cells, strict=True)))


def _cells(path: str, reader: Any) -> Iterator[list[str]]:
    longest = csv.field_size_limit(sys.maxsize)  # a setting of the process
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: not CSV ({error}); put cells with quotes or line breaks in double "
            "quotes, and double the quotes in them."
        ) from None
    finally:
        csv.field_size_limit(longest)


def _header(place: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1 or not name})
    if repeated:
        raise ValueError(
            f"{place}: the column names {repeated} are empty or occur twice; give each column its own name."
        )
    return names
