"""Bias and noise of the gradient estimate of each objective, without sampling error, against completion length.

python -m experiments.exact.completion_length --output runs/exact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.exact.bias_variance import OBJECTIVES
from experiments.exact.sweeps import parser_of, report, setting_of, swept, whole_numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `completion_length.csv` and its plot."""
    parser = parser_of(__doc__, OBJECTIVES, without=("length",))
    parser.add_argument("--lengths", type=whole_numbers, default="2,3,4,5,6,7,8", help="Numbers of tokens, by commas.")
    options = parser.parse_args(arguments)
    settings = [(length, replace(setting_of(options), length=length)) for length in options.lengths]
    report(
        swept(options.objectives, "length", settings),
        "length",
        "completion length (tokens)",
        "completion_length",
        options,
    )


if __name__ == "__main__":
    main()
