"""Tables and plots of the exact measures of objectives against one variable."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aggregate_po import AdvantageEstimator, PolicyObjective, objective_of
from aggregate_po.advantages import GroupNormalized
from experiments.exact.estimates import moments
from experiments.exact.policies import Sequences
from experiments.exact.problems import random_problem
from experiments.figures.style import Value, legend_below, look, panels, plot_parser, save, write_table
from experiments.options import distinct, made, names
from experiments.options import objectives as objectives_by_name

Row = dict[str, Value]
# Labels of the axes; all measures have no unit.
MEASURES = {
    "cosine": "cosine of mean and policy gradient",
    "bias": "bias / |policy gradient|",
    "noise": "standard deviation / |policy gradient|",
    "mean_squared_error": "mean squared error (relative)",
    "signal_to_noise": "signal-to-noise ratio",
}
DIRECTIONS = {"random": "a random direction", "gradient": "the policy gradient"}
PLOTTED = ("bias", "noise", "signal_to_noise")


@dataclass(frozen=True)
class Setting:
    """Problems on which objectives are measured.

    Args:
        vocabulary: Number of symbols.
        length: Largest number of tokens.
        stop: Whether symbol 0 ends a completion.
        group_size: Completions per group.
        distance: Root mean square of the log ratios of the tokens that the behavior policy samples; nats.
        direction: Direction in which the trained policy has moved, `random` or `gradient`.
        problems: Number of random problems.
    """

    vocabulary: int = 2
    length: int = 4
    stop: bool = False
    group_size: int = 4
    distance: float = 0.2
    direction: str = "random"
    problems: int = 50


def measured(
    objectives: Mapping[str, PolicyObjective], setting: Setting, estimator: AdvantageEstimator = GroupNormalized()
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of each objective with the median of each measure over the problems, and its quartiles.

    The quartiles have the names `MEASURE_q1` and `MEASURE_q3`.

    Args:
        objectives: Objectives by their name.
        setting: Problems.
        estimator: Advantages from the rewards of a group.
    """
    sequences = Sequences.of(setting.vocabulary, setting.length, setting.stop)
    found: dict[str, list[list[float]]] = {name: [] for name in objectives}
    for seed in range(setting.problems):
        problem = random_problem(sequences, setting.distance, seed, setting.direction == "gradient")
        for name, objective in objectives.items():
            estimate = moments(problem, objective, estimator, setting.group_size)
            found[name].append([getattr(estimate, measure)(problem.policy_gradient) for measure in MEASURES])
    for name, of_problems in found.items():
        row = {}
        for measure, values in zip(MEASURES, zip(*of_problems, strict=True), strict=True):
            quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else 3 * values
            row |= {measure: quartiles[1], f"{measure}_q1": quartiles[0], f"{measure}_q3": quartiles[2]}
        yield name, row


def swept(
    objectives: Mapping[str, PolicyObjective], variable: str, settings: Iterable[tuple[float, Setting]]
) -> Iterator[Row]:
    """Yield a row for each objective in each setting.

    Args:
        objectives: Objectives by their name.
        variable: Column of the value that differs between the settings.
        settings: Value of the variable, and the setting.
    """
    for value, setting in settings:
        for name, row in measured(objectives, setting):
            yield {"objective": name, variable: value, **row}


def with_argument(
    parser: argparse.ArgumentParser, objectives: Iterable[str], argument: str, values: Sequence[float]
) -> dict[float, dict[str, PolicyObjective]]:
    """Return the objectives by their name for each value of an argument, or end with an error of the parser.

    Args:
        parser: Parser of the script.
        objectives: Recipes, or import paths of functions or classes, that take the argument.
        argument: Name of the argument.
        values: Values of the argument.
    """
    try:
        return {
            value: {name: made(name, partial(objective_of, name, **{argument: value})) for name in objectives}
            for value in values
        }
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --objectives: {error}")


def swept_argument(
    objectives: Mapping[float, Mapping[str, PolicyObjective]], argument: str, setting: Setting
) -> Iterator[Row]:
    """Yield a row for each objective and each value of an argument of it.

    Args:
        objectives: Objectives by their name, for each value of the argument.
        argument: Name of the argument.
        setting: Problems.
    """
    for value, of_value in objectives.items():
        for name, row in measured(of_value, setting):
            yield {"objective": name, argument: value, **row}


def parser_of(
    description: str | None,
    objectives: Sequence[str],
    setting: Setting = Setting(),
    without: Sequence[str] = (),
    made_later: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser of the options that scripts share.

    Args:
        description: Docstring of the script.
        objectives: Default of the objectives.
        setting: Defaults of the problems.
        without: Options that the script does not have, since it varies them or they make no difference.
        made_later: Whether the objectives are names, to be made with an argument, and not objectives by their name.
    """
    parser = plot_parser(description, Path("runs/exact"))

    def add(name: str, help_text: str, **more: Any) -> None:
        if name not in without:
            parser.add_argument(f"--{name}", help=help_text, **more)

    kind = names if made_later else objectives_by_name
    add("objectives", "Recipes or import paths, by commas.", type=kind, default=",".join(objectives) or {})
    add("vocabulary", "Number of symbols, two or more.", type=several, default=setting.vocabulary)
    add("length", "Largest number of tokens.", type=positive, default=setting.length)
    add("stop", "Let symbol 0 end a completion.", action="store_true")
    add("group_size", "Completions per group.", type=positive, default=setting.group_size)
    add("distance", "Root mean square of the log ratios; nats.", type=distance, default=setting.distance)
    add("direction", "How the policy has moved.", choices=DIRECTIONS, default=setting.direction)
    add("problems", "Number of random problems.", type=positive, default=setting.problems)
    return parser


def positive(text: str) -> int:
    """Return a whole number from 1 on, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on; pass one such as 2.")
    return int(text)


def several(text: str) -> int:
    """Return a whole number from 2 on, for `argparse`."""
    if (found := positive(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 2 on; pass one such as 2.")
    return found


def setting_of(options: argparse.Namespace) -> Setting:
    """Return the setting of parsed options, with the defaults for those that the script does not have."""
    return Setting(**{name: getattr(options, name) for name in Setting.__dataclass_fields__ if hasattr(options, name)})


def shown(objective: object) -> str:
    """Return the name of an objective in tables and plots: without the module, for those of the scripts."""
    return str(objective).removeprefix("experiments.exact.families.")


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a list by commas, for `argparse`."""
    return distinct([number(part) for part in text.split(",")])


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers from 1 on of a list by commas, for `argparse`."""
    return distinct([positive(part) for part in text.split(",")])


def distances(text: str) -> tuple[float, ...]:
    """Return the distances of a list by commas, for `argparse`."""
    return distinct([distance(part) for part in text.split(",")])


def number(text: str) -> float:
    """Return a finite number, for `argparse`."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number; pass one such as 0.2.")
    return found


def distance(text: str) -> float:
    """Return a number from 0 on, for `argparse`."""
    if (found := number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0; pass a distance such as 0.2.")
    return found


def report(
    rows: Iterable[Row],
    variable: str,
    label: str,
    name: str,
    options: argparse.Namespace,
    scale: str = "linear",
    ticks: Sequence[float] = (),
) -> list[Row]:
    """Print a table while it is made, write it with its plot, and return it.

    Args:
        rows: Rows with `objective`, the variable and the measures.
        variable: Column on the horizontal axis.
        label: Label of the horizontal axis.
        name: Name of the files without their suffix.
        options: Parsed options of the script.
        scale: Scale of the horizontal axis, a name of matplotlib.
        ticks: Ticks of the horizontal axis; those of matplotlib without any.
    """
    table = []
    width = max(len("objective"), *(len(shown(name)) for name in options.objectives))
    print(f"{'objective':{width}} {variable:>12} " + " ".join(f"{measure:>18}" for measure in MEASURES))
    for row in rows:
        table.append(row)
        values = " ".join(f"{row[measure]:18.4f}" for measure in MEASURES)
        print(f"{shown(row['objective']):{width}} {row[variable]:12g} {values}", flush=True)
    table = write_table(table, options.output, name)
    canvas, axes = panels(1, len(PLOTTED), 12, 4)
    for panel, measure in zip(axes, PLOTTED, strict=True):
        for number, objective in enumerate(dict.fromkeys(row["objective"] for row in table)):
            own = [row for row in table if row["objective"] == objective]
            panel.plot(
                [row[variable] for row in own],
                [row[measure] for row in own],
                label=shown(objective),
                **look(number),
            )
        panel.set_xscale(scale)
        if ticks:
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.minorticks_off()
        panel.set_xlabel(label)
        panel.set_ylabel(MEASURES[measure])
    legend_below(canvas, axes[0], 9)
    save(canvas, options.output, name, options.formats.split(","))
    return table
