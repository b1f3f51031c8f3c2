"""Weights of the tokens and effective sample size of a power mean against its exponent, on recorded rollouts.

The log ratios of the completions come from a folder that `aggregate-po record` has written, or from a table with the
columns `completion` and `log_ratio`, one row for each token. The first panel has the weights of the tokens of one
completion, the one whose log ratios vary most; the second has the effective sample size of all completions.

    python -m experiments.figures.power_weights --output runs/figures
    python -m experiments.figures.power_weights --recording runs/recording --output runs/figures
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aggregate_po.geometry import power_ess, power_weights
from experiments.figures.style import COLORS, DATA, panels, plot_parser, save, write_table

LOG_RATIOS = DATA / "log_ratios.csv"
LARGEST, POINTS, LABELED = 4.0, 49, 3


def read_log_ratios(path: Path) -> list[Tensor]:
    """Return the log ratios of each completion of a table."""
    found: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["completion"], []).append(float(row["log_ratio"]))
    return [torch.tensor(values, dtype=torch.float64) for values in found.values()]


def recorded_log_ratios(folder: Path) -> list[Tensor]:
    """Return the log ratios of the trained tokens of each completion in the last quarter of the recorded steps."""
    from lightning_modules.recordings.recording import Recording

    recording = Recording(folder)
    rows = recording.tokens
    steps = sorted({row["step"] for row in rows})
    late = steps[-max(1, len(steps) // 4) :]
    found = []
    for row in rows:
        if row["step"] in late:
            trained = torch.tensor(row["trained"])
            difference = torch.tensor(row["log_probs"]).double() - torch.tensor(row["old_log_probs"]).double()
            found.append(difference[trained])
    return found


def ess_fractions(log_ratio: Tensor, exponents: Tensor) -> Tensor:
    """Return the effective sample size of a completion at each exponent, over its length; shape `exponent`."""
    repeated = log_ratio.expand(len(exponents), -1)
    return power_ess(repeated, torch.ones_like(repeated).bool(), exponents) / len(log_ratio)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `power_weights.csv` and its plot."""
    parser = plot_parser(__doc__)
    parser.add_argument("--recording", type=Path, help="Folder of a recording, in place of the table.")
    parser.add_argument("--log_ratios", type=Path, default=LOG_RATIOS, help="Table of log ratios.")
    parser.add_argument("--write_log_ratios", type=Path, help="Table to write from the recording.")
    options = parser.parse_args(arguments)
    if options.write_log_ratios and options.write_log_ratios.suffix != ".csv":
        parser.error(f"argument --write_log_ratios: {str(options.write_log_ratios)!r} is no CSV file; end it with .csv")
    given = recorded_log_ratios(options.recording) if options.recording else read_log_ratios(options.log_ratios)
    completions = [values for values in given if len(values) > 1]
    if not completions:
        source = ("--recording", options.recording) if options.recording else ("--log_ratios", options.log_ratios)
        parser.error("argument {}: {} has no completion of two tokens or more; pass another".format(*source))
    if options.write_log_ratios:
        rows = [
            {"completion": number, "log_ratio": value}
            for number, values in enumerate(completions)
            for value in values.tolist()
        ]
        write_table(rows, options.write_log_ratios.parent, options.write_log_ratios.stem)
    exponents = torch.linspace(-LARGEST, LARGEST, POINTS, dtype=torch.float64)
    widest = max(completions, key=lambda values: float(values.std()))
    repeated = widest.expand(POINTS, -1)
    weights = power_weights(repeated, torch.ones_like(repeated).bool(), exponents)
    share = torch.stack([ess_fractions(values, exponents) for values in completions])
    quantiles = share.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64), dim=0)
    names = ["ess_fraction_05", "ess_fraction_25", "ess_fraction_50", "ess_fraction_75", "ess_fraction_95"]
    table = [
        {"exponent": exponents[i].item()}
        | {name: quantiles[j, i].item() for j, name in enumerate(names)}
        | {f"weight_{t + 1}": weights[i, t].item() for t in range(len(widest))}
        for i in range(POINTS)
    ]
    table = write_table(table, options.output, "power_weights")
    curves = {column: [row[column] for row in table] for column in table[0]}
    canvas, (left, right) = panels(1, 2, 10.5, 4)
    order = widest.argsort(descending=True).tolist()
    labeled = order[:LABELED] + order[-LABELED:]
    for t in order:
        color = COLORS[labeled.index(t)] if t in labeled else "#bbbbbb"
        label = f"$x$ = {widest[t]:+.2f}".replace("-", "\N{MINUS SIGN}") if t in labeled else None
        left.plot(exponents, curves[f"weight_{t + 1}"], color=color, label=label, zorder=2 if t in labeled else 1)
    left.set_xlabel("exponent $p$")
    left.set_ylabel("weight $W_t(p)$ of each token of a completion")
    left.legend(fontsize=8, title="log ratio (nats)", title_fontsize=8)
    band = {"color": COLORS[0], "linewidth": 0}
    right.fill_between(
        exponents, curves["ess_fraction_05"], curves["ess_fraction_95"], alpha=0.2, label="5% to 95%", **band
    )
    right.fill_between(
        exponents, curves["ess_fraction_25"], curves["ess_fraction_75"], alpha=0.3, label="25% to 75%", **band
    )
    right.plot(exponents, curves["ess_fraction_50"], color=COLORS[0], label="median")
    right.set_xlabel("exponent $p$")
    right.set_ylabel("effective sample size $\\mathrm{ESS}(p)\\,/\\,n$")
    right.legend(fontsize=8, title=f"{len(completions)} completions", title_fontsize=8)
    save(canvas, options.output, "power_weights", options.formats.split(","))


if __name__ == "__main__":
    main()
