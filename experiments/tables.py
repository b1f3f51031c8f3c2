"""Tables of results: rows of CSV files that several processes append to, and tables in Markdown.

Rows that are complete can be compressed; those appended after it are read after them:

    python -m experiments.tables experiments/study/results/rollouts.csv
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

Row = dict[str, str]
Table = Iterator[list[str]]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, after those of the compressed file next to it; none if neither exists.

    A line that was not written to its end is dropped, and so is one with more or fewer cells than columns.
    """
    compressed = _compressed(path)
    rows = _rows(gzip.decompress(compressed.read_bytes())) if compressed.exists() else []
    return [*rows, *(_rows(path.read_bytes()) if path.exists() else [])]


def _rows(content: bytes) -> list[Row]:
    lines = io.StringIO(content.decode(), newline="")
    rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
    return [row for row in rows if None not in row and None not in row.values()]


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def compress(path: Path) -> None:
    """Move the rows of a CSV file to the compressed file next to it, while no process appends to it.

    Raises:
        ValueError: the file has no rows, or other columns than the compressed one.
    """
    rows = [dict(row) for row in dict.fromkeys(tuple(row.items()) for row in read_rows(path))]
    if not path.exists() or not rows:
        raise ValueError(f"{path} has no rows to compress; append some to it first.")
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"{path} has other columns than {_compressed(path)}; write to another folder.")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    new = path.with_name(f"{path.name}.gz.new")
    new.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    os.replace(new, _compressed(path))
    path.unlink()  # interrupted before it, the rows are there twice, and once after the next call


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV file, whose rows move to FILE.gz.")
    compress(parser.parse_args().file)
