"""Completions of a file with their examples, and the rows that have none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_modules.parquet_files import read_rows, require_pyarrow
from lightning_modules.prompts.json_lines import parsed
from lightning_modules.prompts.parquet import MAGIC
from lightning_modules.prompts.text_files import first_bytes, lines

GivenCompletion = tuple[int, str, dict[str, Any]]  # line or row from 1, completion, and the fields of its example


@dataclass(frozen=True)
class BadRow:
    """A line or row of the file without a completion.

    Args:
        line: number of the line or row, from 1.
        reason: description of the error.
    """

    line: int
    reason: str


def rows_of(file: str, completion: str, bad_rows: list[BadRow]) -> Iterator[GivenCompletion]:
    """Yield the completions of a JSON Lines or Parquet file, and collect the rows without one.

    Args:
        file: path of the file.
        completion: name of the field that holds the completion.
        bad_rows: list to which the other rows are added.
    """
    is_parquet = first_bytes(file, len(MAGIC)) == MAGIC
    for number, row in _parquet_rows(file, completion) if is_parquet else _lines(file, bad_rows):
        if not isinstance(row, dict):
            bad_rows.append(BadRow(number, f"not a JSON object but {type(row).__name__}"))
        elif not isinstance(row.get(completion), str):
            bad_rows.append(BadRow(number, f'no text under "{completion}"'))
        else:
            yield number, row[completion], {name: value for name, value in row.items() if name != completion}


def _lines(file: str, bad_rows: list[BadRow]) -> Iterator[tuple[int, Any]]:
    for number, line in lines(file):
        try:
            yield number, parsed(line, f"line {number}")
        except ValueError as error:
            bad_rows.append(BadRow(number, str(error).partition(": ")[2]))


def _parquet_rows(file: str, completion: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows, with the fields of the column `example` of `CompletionsFile`, which graders read, over others."""
    require_pyarrow(f"{file}: a Parquet file", "write the completions as JSON Lines")
    for number, row in enumerate(read_rows(file), start=1):
        fields = _fields(row.get("example"))
        if fields is not None:
            row = {**row, **fields, completion: row.get(completion)}
            if "example" not in fields:
                del row["example"]
        yield number, row


def _fields(example: Any) -> dict[str, Any] | None:
    """Return the fields of an example, as a structure or in JSON; None for a column that is of another kind."""
    if isinstance(example, str):
        try:
            example = json.loads(example)
        except ValueError:
            return None
    return example if isinstance(example, dict) else None
