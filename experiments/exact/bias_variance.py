"""Bias and noise of the gradient estimate of each objective, without sampling error, against staleness.

Every sequence of a small vocabulary is a completion, and every group of them is enumerated. The behavior policy is a
random one; the trained policy has moved away from it along a random direction, by a number of steps of equal length in
the logits. For each distance the table has the angle between the mean of the estimate and the policy gradient, the bias
and the noise after the best scaling, both relative to the policy gradient, and their sum of squares. Values are medians
over random problems.

    .venv/bin/python -m experiments.exact.bias_variance --output runs/exact
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from aggregate_po import PolicyObjective, objective_of
from aggregate_po.advantages import GroupNormalized
from experiments.exact.estimates import moments
from experiments.exact.policies import Sequences
from experiments.exact.problems import random_problem

OBJECTIVES = ("grpo", "gmpo", "gmpo_no_clip", "pmpo", "hmpo", "gspo", "ctpo", "kpo", "minpro")
DISTANCES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
MEASURES = ("cosine", "bias", "noise", "mean_squared_error")
# Okabe and Ito's colors, which color-blind readers tell apart.
COLORS = ("#000000", "#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#7f7f7f", "#f0e442")


def rows(
    objectives: dict[str, PolicyObjective], sequences: Sequences, group_size: int, problems: int
) -> Iterator[dict[str, float | str]]:
    """Yield the measures of each objective at each distance, as medians over random problems."""
    for distance in DISTANCES:
        for name, objective in objectives.items():
            found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
            for seed in range(problems):
                problem = random_problem(sequences, distance, seed)
                estimate = moments(problem, objective, GroupNormalized(), group_size)
                for measure in MEASURES:
                    found[measure].append(getattr(estimate, measure)(problem.policy_gradient))
            medians = {measure: statistics.median(values) for measure, values in found.items()}
            yield {"objective": name, "distance": distance, **medians}


def plotted(table: Sequence[dict[str, float | str]], path: Path) -> None:
    """Plot the measures against the distance, one line for each objective."""
    canvas, panels = plt.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    labels = ("bias / |policy gradient|", "standard deviation / |policy gradient|", "mean squared error (relative)")
    for panel, measure, label in zip(panels, MEASURES[1:], labels, strict=True):
        for color, name in zip(COLORS * len(table), dict.fromkeys(row["objective"] for row in table), strict=False):
            own = [row for row in table if row["objective"] == name]
            panel.plot([row["distance"] for row in own], [row[measure] for row in own], ".-", color=color, label=name)
        panel.set_xlabel("distance of the policies (root mean square of logit differences)")
        panel.set_ylabel(label)
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize=8)
    canvas.savefig(path)
    plt.close(canvas)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `bias_variance.csv` and `bias_variance.svg`, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES), help="Recipes or import paths, by commas.")
    parser.add_argument("--vocabulary", type=int, default=2)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--stop", action="store_true", help="Let symbol 0 end a completion.")
    parser.add_argument("--group_size", type=int, default=4)
    parser.add_argument("--problems", type=int, default=5, help="Number of random problems.")
    parser.add_argument("--output", type=Path, default=Path("runs/exact"))
    options = parser.parse_args(arguments)
    objectives = {name: objective_of(name) for name in options.objectives.split(",")}
    sequences = Sequences.of(options.vocabulary, options.length, options.stop)
    table = []
    print(f"{'objective':24} distance " + " ".join(f"{measure:>18}" for measure in MEASURES))
    for row in rows(objectives, sequences, options.group_size, options.problems):
        table.append(row)
        values = " ".join(f"{row[measure]:18.4f}" for measure in MEASURES)
        print(f"{row['objective']:24} {row['distance']:8} {values}", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "bias_variance.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    plotted(table, options.output / "bias_variance.svg")


if __name__ == "__main__":
    main()
