"""Bias of each kind of ratio off policy, without sampling error and without a clip, against staleness.

The advantage of a completion is its reward, or that of a token its value under the trained policy: the expected reward
after it. The mean of the estimate is scaled as on policy, where it is nearest to the policy gradient: by the number of
tokens where the objective divides by it. The bias is the length of the difference between the scaled mean and the
policy gradient, relative to the latter. Values are medians over random problems.

    python -m experiments.exact.ratio_bias --length 3 --output runs/exact
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    PolicyObjective,
    PrefixGeometricMean,
    PrefixKalmanFilter,
    PrefixMinimum,
    PrefixProduct,
    Product,
)
from experiments.exact.estimates import expected_gradient
from experiments.exact.policies import Sequences
from experiments.exact.problems import Problem, random_problem
from experiments.exact.sweeps import Row, Setting, distances, parser_of
from experiments.figures.style import legend_below, look, panels, save, write_table


def kinds() -> dict[str, PolicyObjective]:
    """Return an objective for each kind of ratio."""
    mean = ArithmeticMean()
    return {
        "product of all": PolicyObjective(Product()),
        "product of the prefix": PolicyObjective(mean, prefix=PrefixProduct()),
        "minimum of the prefix": PolicyObjective(mean, prefix=PrefixMinimum()),
        "geometric mean of the prefix": PolicyObjective(mean, prefix=PrefixGeometricMean()),
        "token": PolicyObjective(mean),
        "geometric mean of all": PolicyObjective(GeometricMean()),
        "none": PolicyObjective(mean, prefix=PrefixKalmanFilter(0.0, 0.0)),
    }


def error(problem: Problem, objective: PolicyObjective, of_tokens: bool) -> tuple[float, float]:
    """Return the relative bias of an objective, and the cosine of its mean and the policy gradient.

    Args:
        problem: Policies and rewards, with completions of one length.
        objective: Objective to differentiate.
        of_tokens: Whether each token has its value as advantage, and not each completion its reward.
    """
    values = problem.sequences.token_values(problem.logits, problem.rewards) if of_tokens else problem.rewards
    mean = expected_gradient(problem, objective, values)
    on_policy = expected_gradient(replace(problem, old_logits=problem.logits), objective, values)
    gradient = problem.policy_gradient
    scale = on_policy @ gradient / on_policy.square().sum()
    cosine = torch.nn.functional.cosine_similarity(mean, gradient, dim=0)
    return float((scale * mean - gradient).norm() / gradient.norm()), float(cosine)


def rows(
    objectives: dict[str, PolicyObjective], sequences: Sequences, distances: Sequence[float], problems: int
) -> Iterator[Row]:
    """Yield the median bias and cosine of each kind of ratio at each distance, for both kinds of advantage."""
    for distance in distances:
        given = [random_problem(sequences, distance, seed) for seed in range(problems)]
        for name, objective in objectives.items():
            for of_tokens in (False, True):
                # Only a sum over tokens can have an advantage for each.
                if of_tokens and not isinstance(objective.aggregator, ArithmeticMean):
                    continue
                found = [error(problem, objective, of_tokens) for problem in given]
                bias, cosine = (statistics.median(values) for values in zip(*found, strict=True))
                advantage = "value of the token" if of_tokens else "reward"
                yield {"ratio": name, "advantage": advantage, "distance": distance, "bias": bias, "cosine": cosine}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `ratio_bias.csv` and its plot, and print the table."""
    parser = parser_of(__doc__, (), Setting(length=3), without=("stop", "group_size", "distance", "direction"))
    parser.add_argument(
        "--distances", type=distances, default="0,0.05,0.1,0.2,0.4,0.8", help="RMS log ratios, by commas; nats."
    )
    options = parser.parse_args(arguments)
    for name, objective in options.objectives.items():
        if objective.group_objective is not None:
            parser.error(f"argument --objectives: {name!r} compares the completions of a group; leave it out")
    objectives = kinds() | options.objectives
    sequences = Sequences.of(options.vocabulary, options.length)
    table = []
    for row in rows(objectives, sequences, options.distances, options.problems):
        table.append(row)
        print("{ratio:32} {advantage:20} {distance:5} bias {bias:.4f} cosine {cosine:.4f}".format(**row), flush=True)
    table = write_table(table, options.output, "ratio_bias")
    canvas, axes = panels(1, 2, 10, 4)
    for panel, advantage in zip(axes, ("reward", "value of the token"), strict=True):
        for number, name in enumerate(objectives):
            own = [row for row in table if (row["ratio"], row["advantage"]) == (name, advantage)]
            if own:
                panel.plot([row["distance"] for row in own], [row["bias"] for row in own], label=name, **look(number))
        panel.set_title(f"advantage: {advantage}", fontsize=10)
        panel.set_xlabel("RMS log ratio (nats)")
        panel.set_ylabel("bias / |policy gradient|")
    legend_below(canvas, axes[0], 4)
    save(canvas, options.output, "ratio_bias", options.formats.split(","))


if __name__ == "__main__":
    main()
