"""Files of rows with numbers: CSV with all digits, and short tables in Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from lightning_modules.comparison.rows import ALL, Row

_SHOWN = {
    "objective": "objective",
    "value": "value",
    "tokens_effective_fraction": "ESS/n",
    "exponent": "exponent",
    "clipped": "clipped",
    "positive_share": "A > 0",
    "lowest_tenth_share": "lowest x",
    "highest_tenth_share": "highest x",
    "largest_percent_share": "largest 1 %",
    "largest_difference": "to recorded",
}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows to a CSV file; the columns are those of the first row, and NaN is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: float | int | str) -> float | int | str:
    return "" if isinstance(value, float) and math.isnan(value) else value


def summary_table(rows: Sequence[Row], gradients: Sequence[Row] = ()) -> str:
    """Return the rows over all steps as a Markdown table, with the columns of the parameter gradients if given."""
    names = dict(_SHOWN)
    found = {row["objective"]: row for row in gradients}
    if gradients:
        names |= {"cosine_to_recorded": "cosine", "norm_ratio": "norm", "noise_to_signal": "noise"}
    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    for row in (row for row in rows if row["update"] == ALL):
        cells = {**row, **found.get(row["objective"], {})}
        lines.append("| " + " | ".join(_shown(cells.get(name, math.nan)) for name in names) + " |")
    return "\n".join(lines)


def _shown(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.3g}"
