"""Weight of a token against its log ratio, relative to its weight on policy, for several objectives on frozen rollouts.

The values are those that `aggregate-po compare` has written once, or those in the folder of another comparison.

    python -m experiments.figures.frozen_weights --output runs/figures
    python -m experiments.figures.frozen_weights --comparison runs/comparison --output runs/figures
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from experiments.figures.style import DATA, SETTINGS, plot_parser, save, write_table
from lightning_modules.comparison.plots import weight_plot

NAME = "weight_by_log_ratio"
_TEXTS = ("objective", "advantage")


def read_rows(path: Path) -> list[dict[str, float | int | str]]:
    """Return the rows of a `weight_by_log_ratio.csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value if name in _TEXTS else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `frozen_weights.csv` and its plot."""
    parser = plot_parser(__doc__)
    parser.add_argument("--comparison", type=Path, default=DATA, help=f"Folder with {NAME}.csv.")
    options = parser.parse_args(arguments)
    rows = read_rows(options.comparison / f"{NAME}.csv")
    write_table(rows, options.output, "frozen_weights")
    plt.rcParams.update(SETTINGS)
    save(weight_plot(rows), options.output, "frozen_weights", options.formats.split(","))


if __name__ == "__main__":
    main()
