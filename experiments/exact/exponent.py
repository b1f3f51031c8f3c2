"""Bias and noise of the gradient estimate of power means, without sampling error, against their exponent.

An objective is a recipe or an import path that takes the argument `exponent`.

    python -m experiments.exact.exponent --output runs/exact
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.exact.sweeps import numbers, parser_of, report, setting_of, swept_argument, with_argument

OBJECTIVES = ("experiments.exact.families.power", "experiments.exact.families.power_of_clipped", "holder_po")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `exponent.csv` and its plot."""
    parser = parser_of(__doc__, OBJECTIVES, made_later=True)
    values = "-4,-3,-2,-1.5,-1,-0.5,0,0.5,1,1.5,2,3,4"
    parser.add_argument("--exponents", type=numbers, default=values, help="Exponents, by commas.")
    options = parser.parse_args(arguments)
    objectives = with_argument(parser, options.objectives, "exponent", options.exponents)
    rows = swept_argument(objectives, "exponent", setting_of(options))
    report(rows, "exponent", "exponent $p$ of the mean", "exponent", options)


if __name__ == "__main__":
    main()
