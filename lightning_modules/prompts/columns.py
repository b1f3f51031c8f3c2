"""Choice of columns: examples from rows, by the names of columns, with a count of the rows that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.progress import progress_bar
from lightning_modules.prompts.base import Example, require_prompt, short
from lightning_modules.prompts.rows import Row

IncompleteRows = Literal["refuse", "skip"]

ABSENT = object()  # value of a column that a row does not have

_NAMED = 40  # columns that an error lists
_READ_FOR_NAMES = 100


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, such as `answer`, or of a nested one, such as `extra_info.answer` or `turns.0`.

    Returns:
        The value, or `ABSENT` if the row has no such column.
    """
    if column in row:
        return row[column]
    found: Any = row
    for part in column.split("."):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return ABSENT
    return found


class ColumnChoice:
    """Makes examples from rows, and counts the rows that are left out.

    Args:
        columns: column of each field of an example, with one for "prompt".
        keep: tells whether an example is kept; all are when None.
        incomplete: whether rows without one of these fields are refused, or skipped and counted.
    """

    def __init__(
        self, columns: Mapping[str, str], keep: Callable[[Example], bool] | None, incomplete: IncompleteRows
    ) -> None:
        self._columns, self._keep, self._incomplete = dict(columns), keep, incomplete

    def examples(self, source: str, rows: Sequence[Row]) -> tuple[list[Example], list[str]]:
        """Return the examples with their places, after a line in the log that says how many rows were left out.

        Args:
            source: data set of the rows, named by errors.
            rows: all rows of the data set.

        Raises:
            ValueError: there is no such column, a row is refused, or all are left out.
        """
        self._require_columns(source, rows)
        columns = dict(self._columns)
        if any("answer" in row.values for row in rows):
            columns.setdefault("answer", "answer")
        left_out: Counter[str] = Counter()
        found = []
        for row in progress_bar(iterable=rows, desc=source, unit="row", leave=False, delay=2.0):
            example = self._example(row, columns, left_out)
            if example is not None:
                found.append((example, row.place))
        if left_out:
            reasons = " and ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            said = f"{source}: {left_out.total():,} of {len(rows):,} rows are left out, {reasons}"
            if not found:
                raise ValueError(f"{said}, so that none remains; correct `columns` or `filter`.")
            rank_zero_info(f"{said}.")
        return [example for example, _ in found], [place for _, place in found]

    def _example(self, row: Row, columns: Mapping[str, str], left_out: Counter[str]) -> Example | None:
        """Return the example of a row, or None after counting why it is left out."""
        values = {field: _present(row.values, column) for field, column in columns.items()}
        empty = [field for field, value in values.items() if value is None]
        if empty and self._incomplete == "skip":
            left_out[f"without {' or '.join(map(repr, columns))}"] += 1
            return None
        if empty:
            column = columns[empty[0]]
            raise ValueError(
                f"{row.place}: the column {column!r} for the field {empty[0]!r} is missing or empty; write it, or "
                "leave out such rows with incomplete='skip'."
            )
        example = {**row.values, **values}
        require_prompt(example, row.place)
        if self._keep is not None and not self._kept(example, row.place, self._keep):
            left_out[f"by the filter {_name(self._keep)}"] += 1
            return None
        return example

    def _kept(self, example: Example, place: str, keep: Callable[[Example], bool]) -> bool:
        try:
            return bool(keep(example))
        except Exception as error:
            raise ValueError(
                f"{place}: the filter {_name(keep)} raised {type(error).__name__}: {error}; correct it for this row."
            ) from error

    def _require_columns(self, source: str, rows: Sequence[Row]) -> None:
        for field, column in self._columns.items():
            if all(value_at(row.values, column) is ABSENT for row in rows):
                known = sorted({name for row in rows[:_READ_FOR_NAMES] for name in _names(row.values)})
                option = "prompt" if field == "prompt" else "columns"
                raise ValueError(
                    f"{source}: there is no column {column!r} for the field {field!r}; name one of "
                    f"{', '.join(known[:_NAMED])} with `{option}`."
                )


def _present(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, None if it is missing, None, NaN, a blank text or an empty list or mapping."""
    value = value_at(row, column)
    is_blank = isinstance(value, str) and not value.strip()
    is_empty = isinstance(value, (list, tuple, dict)) and not value
    is_nan = isinstance(value, float) and value != value
    return None if value is ABSENT or is_blank or is_empty or is_nan else value


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from (f"{name}.{part}" for part in value)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", short(function))
