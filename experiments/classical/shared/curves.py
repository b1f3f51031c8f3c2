"""Tables of curves in panels, and their plot.

A row is a point of a curve: `panel`, `curve`, `x`, `y`, and the ends `low` and `high` of its band, empty without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from torch import Tensor

from experiments.figures.style import COLORS, SMALLEST, Value

Table = list[dict[str, Value]]
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def point(
    panel: str, curve: str, x: float, y: float, low: float = math.nan, high: float = math.nan
) -> dict[str, Value]:
    """Return a point of a curve, with its band if it has one."""
    return {"panel": panel, "curve": curve, "x": float(x), "y": float(y), "low": float(low), "high": float(high)}


def points(panel: str, curve: str, xs: Iterable[float], ys: Iterable[float]) -> Table:
    """Return a curve without a band."""
    return [point(panel, curve, x, y) for x, y in zip(xs, ys, strict=True)]


def band(panel: str, curve: str, xs: Iterable[float], runs: Tensor, tail: float = 0.1) -> Table:
    """Return the median of runs at each point, with a band from one quantile to the other.

    Args:
        panel: Name of the panel.
        curve: Name of the curve.
        xs: Positions.
        runs: Values of each run; shape `point run`.
        tail: Share of the runs below the band, and above; 0 for a band from the smallest to the largest.
    """
    low, middle, high = (runs.quantile(share, dim=-1).tolist() for share in (tail, 0.5, 1 - tail))
    return [point(panel, curve, *numbers) for numbers in zip(xs, middle, low, high, strict=True)]


def curve_of(table: Table, panel: str, curve: str) -> dict[str, list[float]]:
    """Return the columns of a curve."""
    own = [row for row in table if (row["panel"], row["curve"]) == (panel, curve)]
    return {column: [float(row[column]) for row in own] for column in ("x", "y", "low", "high")}


def plot_panel(
    axes: Axes, table: Table, panel: str, labels: tuple[str, str], scales: Sequence[str] = ("linear", "linear")
) -> None:
    """Plot the curves of a panel, with a legend.

    Args:
        axes: Axes to plot in.
        table: Rows of all panels.
        panel: Name of the panel.
        labels: Labels of the axes, with their units.
        scales: Scales of the axes, "linear" or "log"; a logarithmic one leaves out what is not positive.
    """
    names = list(dict.fromkeys(str(row["curve"]) for row in table if row["panel"] == panel))
    for number, name in enumerate(names):
        columns, color = curve_of(table, panel, name), COLORS[number % len(COLORS)]
        axes.plot(columns["x"], columns["y"], color=color, linestyle=DASHES[number % len(DASHES)], label=name)
        if not all(math.isnan(value) for value in columns["low"]):
            # An end at 0 is masked in a logarithmic scale, which would deform the band.
            least = SMALLEST if scales[1] == "log" else -math.inf
            low, high = ([max(value, least) for value in columns[end]] for end in ("low", "high"))
            axes.fill_between(columns["x"], low, high, color=color, alpha=0.2, linewidth=0)
    for scale, setter in zip(scales, (axes.set_xscale, axes.set_yscale), strict=True):
        setter(scale, **({"nonpositive": "mask"} if scale == "log" else {}))
    axes.minorticks_off()  # each is an element of the file
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(fontsize=8)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms, the exponent of a power.

    Args:
        xs: Positions, positive.
        ys: Values, positive.
    """
    across, up = ([math.log(value) for value in values] for values in (xs, ys))
    center, height = sum(across) / len(across), sum(up) / len(up)
    moment = sum((x - center) * (y - height) for x, y in zip(across, up, strict=True))
    return moment / sum((x - center) ** 2 for x in across)


def moments(last: int, count: int = 30) -> list[int]:
    """Return up to `count` whole numbers from 1 to `last`, evenly spaced in the logarithm."""
    return sorted({round(last ** (number / (count - 1))) for number in range(count)})
