"""Value of a completion against its ratios, for each mean, without a clip and with the clips of the papers.

In the first panel one token of four moves and the others have the ratio 1. In the others two tokens of four have the
ratio on the axis and the other two 1, under objectives with their clips, for an advantage of 1 and of -1.

    python -m experiments.figures.mean_values --output runs/figures
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    StepTotals,
    TokenAggregator,
)
from experiments.figures.style import COLORS, panels, plot_parser, rounded, save, write_table
from experiments.options import objectives

TOKENS, POINTS, WIDEST = 4, 81, 4.0
MEANS: dict[str, TokenAggregator] = {
    "product": Product(),
    "$p = 2$": PowerMean(2.0),
    "arithmetic, $p = 1$": ArithmeticMean(),
    "geometric, $p = 0$": GeometricMean(),
    "harmonic, $p = -1$": PowerMean(-1.0),
    "maximum": PowerMean(1000.0),
    "minimum": PowerMean(-1000.0),
}
DASHES = ("-", "--", "-", "--", "-", ":", ":")


def values(objective: PolicyObjective, log_ratio: Tensor, moving: int, advantage: float) -> list[float]:
    """Return the value of a completion alone in its step, whose first tokens have the given log ratio and others 0.

    Args:
        objective: Objective to evaluate.
        log_ratio: Log ratios of the tokens that move; shape `point`.
        moving: Number of tokens that move, of `TOKENS`.
        advantage: Advantage of the completion.
    """
    found = []
    for one in log_ratio:
        log_probs = torch.zeros(1, TOKENS, dtype=torch.float64)
        log_probs[:, :moving] = one
        old, advantages = torch.zeros_like(log_probs), torch.full((1,), advantage, dtype=torch.float64)
        batch = PolicyBatch(old, torch.ones_like(old), advantages, StepTotals(1, TOKENS, progress=0.0))
        found.append(objective(log_probs, batch).item())
    return [float(rounded(value)) for value in found]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `mean_values.csv` and its plot."""
    parser = plot_parser(__doc__)
    parser.add_argument(
        "--objectives", type=objectives, default="grpo,gmpo,hmpo,pmpo,gspo", help="Recipes or import paths."
    )
    options = parser.parse_args(arguments)
    ratio = torch.logspace(-1, 1, POINTS, base=WIDEST, dtype=torch.float64)
    table = [{"ratio": value} for value in ratio.tolist()]
    canvas, axes = panels(1, 3, 12, 4.3)
    plotted = {name: (PolicyObjective(mean), 1, 1.0) for name, mean in MEANS.items()}
    for panel, sign in zip(axes, (None, 1.0, -1.0), strict=True):
        if sign is not None:
            plotted = {name: (objective, 2, sign) for name, objective in options.objectives.items()}
        for number, (name, (objective, moving, advantage)) in enumerate(plotted.items()):
            try:
                curve = values(objective, ratio.log(), moving, advantage)
            except ValueError as error:
                parser.error(f"argument --objectives: {name!r} has no value for a completion alone: {error}")
            column = name.replace("$", "") if sign is None else f"{name} advantage {sign:g}"
            for row, value in zip(table, curve, strict=True):
                row[column] = value
            color, dashes = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
            # Dashes above lines, so that both are seen where they are equal.
            panel.plot(ratio, curve, label=name, color=color, linestyle=dashes, zorder=2 if dashes == "-" else 3)
        panel.set_xscale("log", base=2)
        panel.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes[0].set_xlabel("ratio $r$ of one token of four")
    axes[0].set_ylabel("mean of the ratios $M$")
    axes[0].set_yscale("log", base=2)
    axes[0].set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes[0].legend(fontsize=8)
    for panel, sign in zip(axes[1:], ("1", "\N{MINUS SIGN}1"), strict=True):
        panel.set_xlabel("ratio $r$ of two tokens of four")
        panel.set_ylabel(f"value $A\\,S$ at advantage $A$ = {sign}")
    axes[1].legend(fontsize=8)
    write_table(table, options.output, "mean_values")
    save(canvas, options.output, "mean_values", options.formats.split(","))


if __name__ == "__main__":
    main()
