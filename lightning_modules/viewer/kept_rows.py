"""Rows of completions and of token numbers that a run has kept, and the completions of those that are chosen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning_modules.callbacks.completion_rows import completion_files
from lightning_modules.parquet_files import read_lengths, read_rows
from lightning_modules.token_rows import TokenRow, token_files
from lightning_modules.viewer.completion_facts import completion_of_row, completion_of_token_row
from lightning_modules.viewer.report import Completion
from lightning_modules.viewer.token_numbers import token_numbers

Key = tuple[int, int, int]  # first step of the rollout, group, sample

_KEY_COLUMNS = {"group", "sample"}
_COMPLETION_COLUMNS = {"step", "group", "sample", "prompt", "completion"}


class TokenRowKey(NamedTuple):
    """Place of a row of token numbers.

    Args:
        step: optimizer step.
        key: completion.
        tokens: number of its tokens.
    """

    step: int
    key: Key
    tokens: int


@dataclass(frozen=True)
class KeptRows:
    """Rows that the files of a run hold.

    Args:
        files: files of completions by the first step of their rollout.
        token_files: files of token numbers by optimizer step.
        lengths: number of tokens of each completion in `files`, None if unknown.
        token_rows: rows in `token_files`.
    """

    files: Mapping[int, Path] = field(default_factory=dict)
    token_files: Mapping[int, Path] = field(default_factory=dict)
    lengths: Mapping[Key, int | None] = field(default_factory=dict)
    token_rows: Sequence[TokenRowKey] = ()

    @property
    def keys(self) -> set[Key]:
        """Completions of both kinds of files."""
        return self.lengths.keys() | {row.key for row in self.token_rows}


def kept_rows(folder: Path) -> KeptRows:
    """Return the rows that a run folder holds; no texts and no numbers are read.

    Raises:
        ValueError: a file is damaged.
    """
    files, token_rows = completion_files(folder), token_files(folder)
    lengths: dict[Key, int | None] = {}
    for start, path in files.items():
        rows = _rows(path, _KEY_COLUMNS, ("group", "sample", "length"))
        lengths.update({_key(start, row): row.get("length") for row in rows})
    keys = [key for step, path in token_rows.items() for key in _token_row_keys(step, path, sorted(files), lengths)]
    return KeptRows(files, token_rows, lengths, keys)


def shown_completions(
    kept: KeptRows, groups: Collection[tuple[int, int]], token_groups: Collection[tuple[int, int]]
) -> list[Completion]:
    """Return completions in the order of steps and groups.

    Args:
        kept: rows of the run.
        groups: first step of the rollout and number of each group to return.
        token_groups: optimizer step and number of each group whose token numbers to return.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[Key, Completion] = {}
    starts, steps = {start for start, _ in groups}, {step for step, _ in token_groups}
    start_of = {row.step: row.key[0] for row in kept.token_rows}
    for step in sorted(steps):
        for row in cast(list[TokenRow], _rows(kept.token_files[step], set(TokenRow.__annotations__))):
            if (step, row["group"]) in token_groups:
                key = _key(start_of[step], row)
                shown = found.setdefault(key, completion_of_token_row(row, key[0]))
                found[key] = replace(shown, tokens=(*shown.tokens, token_numbers(row)))
    for start in sorted(starts & kept.files.keys()):
        for kept_row in _rows(kept.files[start], _COMPLETION_COLUMNS):
            if (start, kept_row["group"]) in groups:
                key = _key(start, kept_row)
                found[key] = completion_of_row(kept_row, key, found[key].tokens if key in found else ())
    return [found[key] for key in sorted(found)]


def _token_row_keys(
    step: int, path: Path, starts: Sequence[int], lengths: Mapping[Key, int | None]
) -> list[TokenRowKey]:
    """Return the places of the rows of a file.

    Their rollout is the last one that begins with the step or before. Without its file, it would be taken for the one
    before, whose completions have other lengths: the step itself is its first one then.
    """
    rows, counts = _rows(path, _KEY_COLUMNS, ("group", "sample")), read_lengths(path, "tokens")
    index = bisect_right(starts, step) - 1
    start = starts[index] if index >= 0 else step
    if any(lengths.get(_key(start, row)) not in (None, count) for row, count in zip(rows, counts, strict=True)):
        start = step
    return [TokenRowKey(step, _key(start, row), count) for row, count in zip(rows, counts, strict=True)]


def _rows(path: Path, columns: set[str], only: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file, which must have some columns; only these columns, if given."""
    rows = read_rows(path, only)
    if rows and (missing := sorted(columns - rows[0].keys())):
        raise ValueError(f"{path} has no column {missing[0]!r}; it was not written by this library, so move it away.")
    return rows


def _key(start: int, row: Mapping[str, Any]) -> Key:
    return start, row["group"], row["sample"]
