"""Tables of results: rows of CSV files that several processes append to, and tables in Markdown."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

Row = dict[str, str]
Table = Iterator[list[str]]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none if it does not exist.

    A line that was not written to its end is dropped, and so is one with more or fewer cells than columns.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
    return [row for row in rows if None not in row and None not in row.values()]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows in place of a line that was not written to its end; processes wait for each other.

    Raises:
        ValueError: the file has other columns.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        head, found = text.getvalue(), content.decode().partition("\n")
        if found[1] and found[0].strip() != head.strip():
            raise ValueError(f"{path} has other columns than {', '.join(rows[0])}; write to another folder.")
        writer.writerows(rows)
        file.write(text.getvalue()[len(head) if found[1] else 0 :].encode())


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
