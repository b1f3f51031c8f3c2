"""Learning without sampling error, for each objective and number of updates per rollout.

The policy begins uniform and follows the mean of its gradient estimate over all groups. Expected rewards are medians
over random rewards of the sequences, 1 for a third of them.

    python -m experiments.exact.learning_curves --output runs/exact
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from aggregate_po.advantages import GroupNormalized
from experiments.exact.bias_variance import OBJECTIVES
from experiments.exact.learning import learning_curve
from experiments.exact.policies import Sequences
from experiments.exact.problems import random_problem
from experiments.exact.sweeps import Row, Setting, number, parser_of, positive, whole_numbers
from experiments.figures.style import legend_below, look, panels, rounded, save, write_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `learning_curves.csv` and its plot, and print the last expected rewards."""
    parser = parser_of(__doc__, OBJECTIVES, Setting(problems=5), without=("distance", "direction"))
    parser.add_argument("--updates", type=whole_numbers, default="1,4,16", help="Updates per rollout, by commas.")
    parser.add_argument("--rollouts", type=positive, default=15, help="Number of rollouts.")
    parser.add_argument("--learning_rate", type=number, default=2.0, help="Size of a step.")
    options = parser.parse_args(arguments)
    sequences = Sequences.of(options.vocabulary, options.length, options.stop)
    rewards = [random_problem(sequences, 0.0, seed).rewards for seed in range(options.problems)]
    updates = options.updates
    table: list[Row] = []
    canvas, axes = panels(1, len(updates), 4 * len(updates), 4)
    for panel, count in zip(axes, updates, strict=True):
        for place, (name, objective) in enumerate(options.objectives.items()):
            curves = [
                learning_curve(
                    sequences,
                    one,
                    objective,
                    GroupNormalized(),
                    options.group_size,
                    options.rollouts,
                    count,
                    options.learning_rate,
                )
                for one in rewards
            ]
            medians = [rounded(statistics.median(values)) for values in zip(*curves, strict=True)]
            print(f"{name:32} {count:3} updates per rollout: expected reward {medians[-1]:.4f}", flush=True)
            table += [
                {"objective": name, "updates": count, "rollout": rollout, "expected_reward": value}
                for rollout, value in enumerate(medians)
            ]
            panel.plot(medians, label=name, **look(place), markevery=5)
        panel.set_title(f"updates per rollout: {count}", fontsize=10)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("rollouts")
        panel.set_ylabel("expected reward")
    legend_below(canvas, axes[0], 9)
    write_table(table, options.output, "learning_curves")
    save(canvas, options.output, "learning_curves", options.formats.split(","))


if __name__ == "__main__":
    main()
