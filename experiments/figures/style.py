"""Style of the plots of the documentation, and files that are the same whenever they are written."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DATA = Path(__file__).with_name("data")  # what was measured once
# Okabe and Ito's colors, which color-blind readers tell apart, with markers for when there are more lines.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#882255", "#7f7f7f")
MARKERS = "osD^vPX*<>"
SETTINGS = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # of nearly the same width
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # text, which is small and can be searched
    "svg.hashsalt": "aggregate_po",  # ids that do not change
}
# No dates, and no version of the program.
METADATA: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
SMALLEST = 1e-12  # smaller numbers are rounding errors
Value = float | int | str


def plot_parser(description: str | None, folder: Path = Path("runs/figures")) -> argparse.ArgumentParser:
    """Return a parser of the folder and the formats of a plot.

    Args:
        description: Docstring of the script.
        folder: Default of the folder.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = f"Formats of the plot, by commas: {', '.join(METADATA)}."
    parser.add_argument("--formats", type=_formats, default="svg", help=help_text)
    parser.add_argument("--output", type=Path, default=folder, help=f"Folder of the files; {folder} without it.")
    return parser


def _formats(text: str) -> str:
    if unknown := sorted(set(text.split(",")) - set(METADATA)):
        raise argparse.ArgumentTypeError(f"{','.join(unknown)!r} is unknown; pass any of {', '.join(METADATA)}.")
    return text


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a canvas with its panels, from left to right and from top to bottom.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        width: Width of the canvas in inches.
        height: Height of the canvas in inches.
    """
    plt.rcParams.update(SETTINGS)
    canvas, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    return canvas, list(axes.flat)


def look(number: int) -> dict[str, str]:
    """Return color and marker of a line, by its number."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def legend_below(canvas: Figure, panel: Axes, columns: int) -> None:
    """Put one legend, that of a panel, below all panels."""
    handles, labels = panel.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns)


def save(canvas: Figure, folder: Path, name: str, formats: Sequence[str] = ("svg",)) -> None:
    """Write a canvas in each of the formats, print the paths, and close it.

    Args:
        canvas: The canvas.
        folder: Folder of the files; made if it is missing.
        name: Name of the files without their suffix.
        formats: Formats of `METADATA`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        path = folder / f"{name}.{suffix}"
        canvas.savefig(path, metadata=METADATA[suffix], dpi=110)
        print(path)
    plt.close(canvas)


def rounded(value: Value) -> Value:
    """Return a number with six digits, 0 for what is left of one by rounding, and anything else as it is.

    Plots of such numbers are the same where only the last digits of a computation differ.
    """
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if abs(value) > SMALLEST or math.isnan(value) else 0.0


def write_table(rows: Iterable[Mapping[str, Value]], folder: Path, name: str) -> list[dict[str, Value]]:
    """Write rows with equal columns as `NAME.csv`, and return them with the numbers as they are written.

    Args:
        rows: Values of each row by their column; at least one row. NaN is written as an empty cell.
        folder: Folder of the file; made if it is missing.
        name: Name of the file without its suffix.
    """
    table = [{column: rounded(value) for column, value in row.items()} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        for row in table:
            writer.writerow({column: _text(value) for column, value in row.items()})
    return table


def _text(value: Value) -> Value:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
