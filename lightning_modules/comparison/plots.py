"""Plots of a comparison, each with the rows that it shows as CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lightning_modules.comparison.rows import ALL, Row
from lightning_modules.comparison.tables import write_csv

# Colors that color-blind readers can tell apart, of Okabe and Ito; with the line styles enough for 21 objectives.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":")
_SIGNS = {"positive": ("#0072B2", r"$A > 0$"), "negative": ("#D55E00", r"$A < 0$")}
_PANELS_PER_ROW = 4
_MODULES = re.compile(r"^(\w+\.)+")
_RELATIVE = r"weight over weight on policy, $w_t / w_t^{(r = 1)}$"


def weight_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of `rows_by_log_ratio`, one panel for each objective."""
    labels = _labels(rows)
    lines = -(-len(labels) // _PANELS_PER_ROW) or 1
    columns = -(-len(labels) // lines) or 1  # as many in each line, up to one
    size = (3.1 * columns + 0.6, 2.6 * lines + 0.6)
    canvas, panels = plt.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (label, name) in zip(panels.flat, labels.items(), strict=False):
        for sign, (color, meaning) in _SIGNS.items():
            chosen = [row for row in rows if (row["objective"], row["advantage"]) == (label, sign)]
            across = [row["log_ratio"] for row in chosen]
            low, high = ([row[name] for row in chosen] for name in ("quantile_05", "quantile_95"))
            panel.fill_between(across, low, high, color=color, alpha=0.2, linewidth=0)
            style = "-" if sign == "positive" else "--"
            panel.plot(across, [row["mean"] for row in chosen], style, color=color, label=meaning)
        panel.axhline(1, color="gray", linewidth=0.6)
        panel.axvline(0, color="gray", linewidth=0.6)
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(labels) :]:
        panel.set_axis_off()
    panels[0, 0].legend(fontsize=8)
    canvas.supxlabel(r"log ratio $x_t$ (nats)", fontsize=10)
    canvas.supylabel(_RELATIVE, fontsize=10)
    return canvas


def position_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of `rows_by_position`: share of the gradient, and clipped tokens."""
    canvas, (share, clipped) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for number, (label, name) in enumerate(_labels(rows).items()):
        chosen = [row for row in rows if row["objective"] == label]
        across = [row["position"] for row in chosen]
        share.plot(across, [row["relative_share"] for row in chosen], label=name, **_style(number))
        clipped.plot(across, [100 * float(row["clipped"]) for row in chosen], label=name, **_style(number))
    share.axhline(1, color="gray", linewidth=0.6)
    share.set_ylabel(r"share of $\sum |w_t|$ over share of tokens")
    clipped.set_ylabel("clipped tokens (%)")
    for panel in (share, clipped):
        panel.set_xlabel(r"position in the completion, $t / n$")
        panel.set_xlim(0, 1)
    _finish((share, clipped))
    return canvas


def quantile_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of `rows_by_quantile`."""
    canvas, panel = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for number, (label, name) in enumerate(_labels(rows).items()):
        chosen = [row for row in rows if row["objective"] == label]
        shares = [100 * float(row["share"]) for row in chosen]
        panel.plot([row["tenth"] for row in chosen], shares, label=name, **_style(number))
    panel.axhline(10, color="gray", linewidth=0.6)
    panel.set_xlabel(r"tenth of the tokens by log ratio $x_t$, from the lowest")
    panel.set_ylabel(r"share of $\sum |w_t|$ (%)")
    panel.set_xticks(range(1, 11))
    _finish((panel,))
    return canvas


def update_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of measures of `objective_rows` against the update of the rollout."""
    measures: dict[str, tuple[str, Callable[[float], float]]] = {
        "clipped": ("clipped tokens (%)", lambda value: 100 * value),
        "tokens_effective_fraction": (r"ESS$(w)$ over length $n$", float),
        "largest_percent_share": (r"share of the largest 1 % of $|w_t|$ (%)", lambda value: 100 * value),
    }
    canvas, panels = plt.subplots(1, len(measures), figsize=(12.5, 3.6), layout="constrained")
    for number, (label, name) in enumerate(_labels(rows).items()):
        chosen = [row for row in rows if row["objective"] == label and row["update"] != ALL]
        across = [row["update"] for row in chosen]
        for panel, (column, (_, scaled)) in zip(panels, measures.items(), strict=True):
            panel.plot(across, [scaled(float(row[column])) for row in chosen], label=name, **_style(number))
    for panel, (text, _) in zip(panels, measures.values(), strict=True):
        panel.set_ylabel(text)
        panel.set_xlabel("update of the rollout, $k$")
        panel.xaxis.get_major_locator().set_params(integer=True)
    _finish(panels)
    return canvas


def overlap_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of `overlap_rows` as a matrix."""
    return _matrix(rows, "jaccard", "overlap of the clipped tokens, Jaccard index", (0, 1))


def cosine_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of the cosines between the gradients of the parameters as a matrix."""
    lowest = min((float(row["cosine"]) for row in rows if not math.isnan(float(row["cosine"]))), default=0.0)
    text = r"cosine of the parameter gradients, $\cos(g_i, g_j)$"
    return _matrix(rows, "cosine", text, (min(lowest, 0.9), 1), digits=3)


def gradient_plot(rows: Sequence[Row]) -> Any:
    """Return a plot of norm and noise of the parameter gradients."""
    canvas, (norm, noise) = plt.subplots(
        1, 2, figsize=(9.5, 0.32 * len(rows) + 1.4), sharey=True, squeeze=True, layout="constrained"
    )
    places = range(len(rows))
    norm.barh(places, [float(row["norm_ratio"]) for row in rows], color=_COLORS[0])
    norm.set_xlabel(r"norm over that of the recorded step, $|g| / |g_\mathrm{rec}|$")
    noise.barh(places, [float(row["noise_to_signal"]) for row in rows], color=_COLORS[1])
    noise.set_xlabel(r"noise to signal, $\sqrt{\mathrm{Var}(g)} / |g|$")
    norm.set_yticks(places, list(_labels(rows).values()))
    norm.invert_yaxis()
    for panel in (norm, noise):
        panel.grid(alpha=0.3, axis="x")
    return canvas


def save_plot(canvas: Any, rows: Sequence[Row], folder: Path, name: str) -> None:
    """Write a plot as SVG and PDF, and its rows as CSV; the same plot gives the same files."""
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
        canvas.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    plt.close(canvas)
    write_csv(rows, folder / f"{name}.csv")


def _matrix(rows: Sequence[Row], value: str, text: str, limits: tuple[float, float], digits: int = 2) -> Any:
    labels = _labels(rows)
    by_pair = {(row["objective"], row["other"]): float(row[value]) for row in rows}
    table = [[by_pair[first, second] for second in labels] for first in labels]
    side = 0.62 * len(labels) + 2.2
    canvas, panel = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = panel.imshow(table, vmin=limits[0], vmax=limits[1], cmap="cividis")
    for line, values in enumerate(table):
        for column, number in enumerate(values):
            dark = math.isnan(number) or number < (limits[0] + limits[1]) / 2
            shown = "-" if math.isnan(number) else f"{number:.{digits}f}"
            color = "black" if math.isnan(number) or not dark else "white"
            panel.text(column, line, shown, ha="center", va="center", fontsize=8, color=color)
    panel.set_xticks(range(len(labels)), list(labels.values()), rotation=45, ha="right")
    panel.set_yticks(range(len(labels)), list(labels.values()))
    canvas.colorbar(image, ax=panel, shrink=0.8, label=text)
    return canvas


def _labels(rows: Sequence[Row]) -> dict[str, str]:
    """Return the names to show of the objectives: of an import path the last part, unless two have the same one."""
    labels = list(dict.fromkeys(str(row["objective"]) for row in rows))
    short = [_MODULES.sub("", label) for label in labels]
    return {label: name if short.count(name) == 1 else label for label, name in zip(labels, short, strict=True)}


def _style(number: int) -> dict[str, Any]:
    line = _LINES[number // len(_COLORS) % len(_LINES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": line, "marker": "o", "markersize": 3}


def _finish(panels: Sequence[Axes]) -> None:
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
