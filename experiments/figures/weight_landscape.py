"""Gradient weight of a token against its own log ratio and that of another token, for several objectives.

A completion of three tokens with advantage 1, alone in its step. One token has the log ratio on the horizontal axis,
another that on the vertical axis, and the third has the ratio 1. Weights are multiplied by the length, so that they are
1 on policy, or the advantage where it is another. Weights whose sign is not that of the advantage, as a penalty or an
objective of one's own may give, are in one color apart from the scale.

    python -m experiments.figures.weight_landscape --output runs/figures
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import torch
from torch import Tensor

from aggregate_po import PolicyBatch, PolicyObjective, StepTotals
from experiments.figures.style import panels, plot_parser, save, write_table
from experiments.options import number, objectives

TOKENS, POINTS, HALF_WIDTH, LARGEST = 3, 41, 1.0, 1.6
OPPOSITE = "#d55e00"  # of weights against the advantage
OBJECTIVES = ("grpo", "gmpo", "hmpo", "pmpo", "sapo", "tic_grpo")


def landscape(objective: PolicyObjective, own: Tensor, other: Tensor, advantage: float) -> Tensor:
    """Return the weight of the first token times the length; shape `other own`.

    Args:
        objective: Objective to differentiate.
        own: Log ratios of the first token; shape `own`.
        other: Log ratios of the second token; shape `other`.
        advantage: Advantage of the completion.
    """
    pairs = torch.cartesian_prod(other, own)
    log_probs = torch.stack([pairs[:, 1], pairs[:, 0], torch.zeros(len(pairs), dtype=own.dtype)], dim=-1)
    old = torch.zeros_like(log_probs)
    totals = StepTotals(1, TOKENS, progress=0.0)
    batch = PolicyBatch(old, torch.ones_like(old), torch.full_like(old[:, 0], advantage), totals)
    total = objective.gradient_weights(log_probs, batch).total
    return TOKENS * total[:, 0].view(len(other), len(own))


def _advantage(text: str) -> float:
    return number(text, float, "a finite number other than 0", lambda value: value != 0 and math.isfinite(value))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `weight_landscape.csv` and its plot."""
    parser = plot_parser(__doc__)
    parser.add_argument(
        "--objectives", type=objectives, default=",".join(OBJECTIVES), help="Recipes or import paths, by commas."
    )
    parser.add_argument("--advantage", type=_advantage, default=1.0, help="Advantage of the completion.")
    options = parser.parse_args(arguments)
    names = list(options.objectives)
    axis = torch.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS, dtype=torch.float64)
    found = {}
    for name, objective in options.objectives.items():
        try:
            found[name] = landscape(objective, axis, axis, options.advantage)
        except ValueError as error:
            parser.error(f"argument --objectives: {name!r} has no weights on a completion alone: {error}")
    places = torch.cartesian_prod(axis, axis).tolist()
    table = [
        {"own_log_ratio": own, "other_log_ratio": other} | {name: found[name].flatten()[i].item() for name in names}
        for i, (other, own) in enumerate(places)
    ]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    positive = options.advantage > 0
    largest = LARGEST * abs(options.advantage)
    limits = {"vmin": 0.0, "vmax": largest} if positive else {"vmin": -largest, "vmax": 0.0}
    colors = matplotlib.colormaps["cividis"].with_extremes(**{"under" if positive else "over": OPPOSITE})
    opposite = any(bool((weights * options.advantage < 0).any()) for weights in found.values())
    canvas, axes = panels(rows, columns, 3.4 * columns + 1, 3.1 * rows)
    for panel, name in zip(axes, names, strict=False):
        edges = (-HALF_WIDTH, HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH)
        image = panel.imshow(found[name], origin="lower", extent=edges, cmap=colors, **limits)
        panel.grid(visible=False)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("log ratio $x$ of this token (nats)")
        panel.set_ylabel("log ratio of another (nats)")
    for panel in axes[len(names) :]:
        panel.remove()
    extend = "both" if opposite else "max" if positive else "min"
    bar = canvas.colorbar(image, ax=axes[: len(names)], extend=extend, shrink=0.8)
    bar.set_label("gradient weight of this token times length $n$" if rows > 1 else "gradient weight times length $n$")
    write_table(table, options.output, "weight_landscape")
    save(canvas, options.output, "weight_landscape", options.formats.split(","))


if __name__ == "__main__":
    main()
