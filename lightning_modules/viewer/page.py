"""The page: a report as one HTML file that needs neither network nor other files."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.atomic import replacing
from lightning_modules.viewer.encoding import Arrays, packed, without_surrogates
from lightning_modules.viewer.report import Completion, Report, Run, TokenNumbers

_SCRIPTS = ("data.js", "format.js", "header.js", "charts.js", "heat.js", "completions.js", "results.js", "main.js")


def page_html(report: Report) -> str:
    """Return a report as HTML, with styles, scripts and data in it.

    The data are compressed and encoded in Base64, so no text of the report can end the element that holds them. Numbers
    have four significant digits, and integers below 2^24 all of theirs.
    """
    data = base64.b64encode(packed_report(report)).decode()
    assets = files(__package__) / "assets"
    parts = {
        "TITLE": escape(without_surrogates(report.title)),
        "STYLE": (assets / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "DATA": data,
    }
    html = (assets / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], html)


def write_page(report: Report, path: str | Path) -> int:
    """Write a report as an HTML file atomically, and return its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(Path(path)) as scratch:
        scratch.write_text(page_html(report), encoding="utf-8")
        return scratch.stat().st_size


def packed_report(report: Report) -> bytes:
    """Return the data of a page in the form that its script reads."""
    arrays = Arrays()
    header = {
        "title": report.title,
        "notes": list(report.notes),
        "runs": [_run(run, arrays) for run in report.runs],
        "metrics": [vars(metric) for metric in report.metrics],
        "quantities": [vars(quantity) for quantity in report.quantities],
        "completions": _completions(report.completions, arrays),
        "tokens": _tokens(report.completions, arrays),
        "tables": [{**vars(table), "rows": [_cells(row) for row in table.rows]} for table in report.tables],
        "plots": [vars(plot) for plot in report.plots],
    }
    return packed(header, arrays)


def _run(run: Run, arrays: Arrays) -> dict[str, Any]:
    return {
        "name": run.name,
        "facts": dict(run.facts),
        "seed": run.seed,
        "cohort": run.cohort,
        "notes": list(run.notes),
        "steps": arrays.integers(run.steps),
        "metrics": {name: arrays.floats(values) for name, values in run.metrics.items()},
    }


def _completions(completions: Sequence[Completion], arrays: Arrays) -> dict[str, Any]:
    prompts = _Numbers()
    columns: dict[str, Any] = {
        name: arrays.integers([getattr(one, name) for one in completions])
        for name in ("run", "step", "group", "sample")
    }
    columns["length"] = arrays.integers([-1 if one.length is None else one.length for one in completions])
    columns |= {name: arrays.floats([getattr(one, name) for one in completions]) for name in ("reward", "advantage")}
    columns["prompt"] = arrays.integers([prompts.of(one.prompt) for one in completions])
    columns["prompts"] = prompts.texts
    columns["text"] = [one.text for one in completions]
    columns["facts"] = [dict(one.facts) for one in completions]
    return columns


def _tokens(completions: Sequence[Completion], arrays: Arrays) -> dict[str, Any]:
    """Return the numbers of all tokens, one record after the other."""
    records = [(number, tokens) for number, one in enumerate(completions) for tokens in one.tokens]
    vocabulary = _Numbers()
    names: dict[str, None] = {name: None for _, tokens in records for name in tokens.values}
    marks: dict[str, None] = {name: None for _, tokens in records for name in tokens.marks}

    def joined(of: Callable[[TokenNumbers], Sequence[Any]], missing: Any = None) -> list[Any]:
        """Return the values of all tokens; where a record has none, the missing value for each of its tokens."""
        return [value for _, tokens in records for value in of(tokens) or [missing] * len(tokens.texts)]

    return {
        "completion": arrays.integers([number for number, _ in records]),
        "step": arrays.integers([tokens.step for _, tokens in records]),
        "length": arrays.integers([len(tokens.texts) for _, tokens in records]),
        "facts": [dict(tokens.facts) for _, tokens in records],
        "text": arrays.integers(joined(lambda tokens: [vocabulary.of(text) for text in tokens.texts])),
        "vocabulary": vocabulary.texts,
        "id": arrays.integers(joined(lambda tokens: tokens.ids, -1)),
        "values": {name: arrays.floats(joined(_item("values", name))) for name in names},
        "marks": {name: arrays.flags(joined(_item("marks", name), False)) for name in marks},
    }


def _item(field: str, name: str) -> Callable[[TokenNumbers], Sequence[Any]]:
    """Return a function that returns the sequence with this name of a field; it is empty where there is none."""
    return lambda tokens: getattr(tokens, field).get(name, ())


class _Numbers:
    """Numbers of distinct texts, in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def _cells(row: Sequence[str | float | int]) -> list[str | float | int]:
    """Return the cells of a row; a number of NumPy becomes one of Python, and one that is not finite a text."""
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in row]
    return [str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells]
