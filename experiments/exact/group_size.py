"""Bias and noise of the gradient estimate of each objective, without sampling error, against the size of a group.

python -m experiments.exact.group_size --output runs/exact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.exact.bias_variance import OBJECTIVES
from experiments.exact.sweeps import parser_of, report, setting_of, swept, whole_numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `group_size.csv` and its plot."""
    parser = parser_of(__doc__, OBJECTIVES, without=("group_size",))
    parser.add_argument(
        "--group_sizes", type=whole_numbers, default="2,4,8,16,32", help="Completions per group, by commas."
    )
    options = parser.parse_args(arguments)
    settings = [(size, replace(setting_of(options), group_size=size)) for size in options.group_sizes]
    name, label = "group_size", "completions per group"
    report(swept(options.objectives, name, settings), name, label, name, options, "log", [size for size, _ in settings])


if __name__ == "__main__":
    main()
