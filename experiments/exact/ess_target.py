"""Bias and noise of the gradient estimate, without sampling error, where a rule sets the effective sample size.

An objective is a recipe or an import path that takes the argument `target`, the effective sample size over the length.
The exponent of each completion is the one in [0, 1] that meets it: the smallest targets give the arithmetic mean, and 1
the geometric mean.

    python -m experiments.exact.ess_target --output runs/exact
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from experiments.exact.sweeps import numbers, parser_of, report, setting_of, swept_argument, with_argument

OBJECTIVES = ("experiments.exact.families.matched",)


def _targets(text: str) -> tuple[float, ...]:
    if outside := [target for target in numbers(text) if not 0 < target <= 1]:
        raise argparse.ArgumentTypeError(f"{outside[0]:g} is no share of the length; pass numbers above 0 and up to 1")
    return numbers(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `ess_target.csv` and its plot."""
    parser = parser_of(__doc__, OBJECTIVES, made_later=True)
    parser.add_argument("--targets", type=_targets, default="0.5,0.8,0.9,0.95,0.98,0.99,1", help="Targets, by commas.")
    options = parser.parse_args(arguments)
    objectives = with_argument(parser, options.objectives, "target", options.targets)
    rows = swept_argument(objectives, "target", setting_of(options))
    report(rows, "target", "effective sample size / length", "ess_target", options)


if __name__ == "__main__":
    main()
