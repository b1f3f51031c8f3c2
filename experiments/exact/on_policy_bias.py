"""Bias of advantages and normalizers on policy, without sampling error, against the size of a group.

The objective is the arithmetic mean without a clip, whose ratios are all 1. What bias there is comes from the
advantages and from the weights of the completions. Rewards are 0, 0.1 (as for the right format) or 1; with `--stop`
completions have different lengths. Values are medians over random problems.

    python -m experiments.exact.on_policy_bias --output runs/exact
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aggregate_po import AdvantageEstimator, ArithmeticMean, ConstantLength, PolicyObjective, SequenceMean, TokenMean
from aggregate_po.advantages import GroupCentered, GroupNormalized, LeaveOneOut
from experiments.exact.estimates import moments
from experiments.exact.policies import Sequences
from experiments.exact.problems import Problem, random_problem
from experiments.exact.sweeps import MEASURES, Row, Setting, parser_of, whole_numbers
from experiments.figures.style import legend_below, look, panels, save, write_table

REWARDS = (0.0, 0.1, 1.0)
CHANCES = (0.5, 0.2, 0.3)


def graded_problem(sequences: Sequences, seed: int) -> Problem:
    """Return a random problem on policy whose rewards have three values."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(torch.tensor(CHANCES), len(sequences), replacement=True, generator=generator)
    rewards = torch.tensor(REWARDS, dtype=torch.float64)[chosen]
    rewards[0], rewards[1], rewards[-1] = REWARDS
    return replace(random_problem(sequences, 0.0, seed), rewards=rewards)


def pairs(length: int) -> dict[str, tuple[AdvantageEstimator, PolicyObjective]]:
    """Return estimators with one normalizer, and normalizers with one estimator, by their names."""

    def objective(normalizer: SequenceMean | TokenMean | ConstantLength) -> PolicyObjective:
        return PolicyObjective(ArithmeticMean(), normalizer=normalizer)

    constant = ConstantLength(length)
    return {
        "leave-one-out, constant length": (LeaveOneOut(), objective(constant)),
        "centered, constant length": (GroupCentered(), objective(constant)),
        "normalized, constant length": (GroupNormalized(), objective(constant)),
        "leave-one-out, sequence mean": (LeaveOneOut(), objective(SequenceMean())),
        "leave-one-out, token mean": (LeaveOneOut(), objective(TokenMean())),
    }


def rows(sequences: Sequences, group_sizes: Sequence[int], problems: int) -> Iterator[Row]:
    """Yield the median bias and noise of each pair at each size of a group."""
    given = [graded_problem(sequences, seed) for seed in range(problems)]
    for size in group_sizes:
        for name, (estimator, objective) in pairs(sequences.mask.shape[1]).items():
            found = [(moments(problem, objective, estimator, size), problem.policy_gradient) for problem in given]
            bias = statistics.median(estimate.bias(gradient) for estimate, gradient in found)
            noise = statistics.median(estimate.noise(gradient) for estimate, gradient in found)
            yield {"pair": name, "group_size": size, "bias": bias, "noise": noise}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `on_policy_bias.csv` and its plot, and print the table."""
    parser = parser_of(__doc__, (), Setting(problems=10), without=("objectives", "group_size", "distance", "direction"))
    parser.add_argument("--group_sizes", type=whole_numbers, default="2,4,8", help="Completions per group, by commas.")
    options = parser.parse_args(arguments)
    sequences = Sequences.of(options.vocabulary, options.length, options.stop)
    table = []
    sizes = options.group_sizes
    for row in rows(sequences, sizes, options.problems):
        table.append(row)
        print("{pair:32} {group_size:3} bias {bias:.4f} noise {noise:.4f}".format(**row), flush=True)
    name = "on_policy_bias"
    table = write_table(table, options.output, name)
    canvas, axes = panels(1, 2, 9, 4)
    for panel, measure in zip(axes, ("bias", "noise"), strict=True):
        for number, label in enumerate(dict.fromkeys(row["pair"] for row in table)):
            own = [row for row in table if row["pair"] == label]
            panel.plot([row["group_size"] for row in own], [row[measure] for row in own], label=label, **look(number))
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set_xlabel("completions per group")
        panel.set_ylabel(MEASURES[measure])
    legend_below(canvas, axes[0], 3)
    save(canvas, options.output, name, options.formats.split(","))


if __name__ == "__main__":
    main()
