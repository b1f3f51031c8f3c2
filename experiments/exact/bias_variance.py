"""Bias and noise of the gradient estimate of each objective, without sampling error, against staleness.

Every sequence of a small vocabulary is a completion, and every group of them is enumerated. The behavior policy is a
random one; the trained policy has moved away from it along a random direction, or along the policy gradient, until the
root mean square of the log ratios has a given value. For each of them the table has the angle between the mean of the
estimate and the policy gradient, the bias and the noise after the best scaling, both relative to the policy gradient,
their sum of squares, and the signal-to-noise ratio. Values are medians over random problems.

    python -m experiments.exact.bias_variance --output runs/exact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.exact.sweeps import DIRECTIONS, MEASURES, distances, parser_of, report, setting_of, swept
from experiments.figures.style import legend_below, look, panels, save, write_table

OBJECTIVES = ("grpo", "gmpo", "gmpo_no_clip", "pmpo", "hmpo", "gspo", "ctpo", "kpo", "minpro")
DISTANCES = "0,0.05,0.1,0.2,0.4,0.8"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write tables and plots of both directions against the distance, and of bias against noise."""
    parser = parser_of(__doc__, OBJECTIVES, without=("distance", "direction"))
    parser.add_argument("--distances", type=distances, default=DISTANCES, help="RMS log ratios, by commas; nats.")
    options = parser.parse_args(arguments)
    tables = {}
    for direction in DIRECTIONS:
        setting = replace(setting_of(options), direction=direction)
        settings = [(distance, replace(setting, distance=distance)) for distance in options.distances]
        rows = swept(options.objectives, "distance", settings)
        print(f"The policy has moved along {DIRECTIONS[direction]}.")
        tables[direction] = report(rows, "distance", "RMS log ratio (nats)", f"bias_variance_{direction}", options)
    name = "bias_variance_plane"
    columns = ("objective", "distance", "bias", "noise")
    write_table(
        [{"direction": one} | {key: row[key] for key in columns} for one, table in tables.items() for row in table],
        options.output,
        name,
    )
    canvas, axes = panels(1, len(tables), 11, 5)
    for panel, (direction, table) in zip(axes, tables.items(), strict=True):
        panel.set_title(f"moved along {DIRECTIONS[direction]}", fontsize=10)
        for number, objective in enumerate(options.objectives):
            own = [row for row in table if row["objective"] == objective]
            panel.plot([row["bias"] for row in own], [row["noise"] for row in own], label=objective, **look(number))
        panel.set_xlabel(MEASURES["bias"])
        panel.set_ylabel(MEASURES["noise"])
    legend_below(canvas, axes[0], 9)
    save(canvas, options.output, name, options.formats.split(","))


if __name__ == "__main__":
    main()
