"""Classical experiments: each writes its table, `NAME.csv`, and its plot, `NAME.svg`.

python -m experiments.classical
python -m experiments.classical committal --short --output runs/classical
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from matplotlib.figure import Figure

from experiments.figures.style import Value, plot_parser, save, write_table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "assets" / "classical"


class Experiment(Protocol):
    """Module of an experiment."""

    SHORT: Mapping[str, Any]  # sizes of a trial

    def rows(self, **sizes: Any) -> list[dict[str, Value]]:
        """Return the rows of the table."""

    def plot(self, table: list[dict[str, Value]]) -> Figure:
        """Return the plot of the table."""


def names() -> list[str]:
    """Return the names of all experiments, which are those of the modules next to this one."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return [module.name for module in found if not module.ispkg and not module.name.startswith("_")]


def experiment(name: str) -> Experiment:
    """Return the experiment with a name."""
    return cast(Experiment, import_module(f"experiments.classical.{name}"))


def make(name: str, folder: Path, formats: Sequence[str] = ("svg",), short: bool = False) -> None:
    """Write table and plot of an experiment.

    Args:
        name: Name of the experiment.
        folder: Folder of the files.
        formats: Formats of the plot.
        short: Whether to use the sizes of a trial.
    """
    module = experiment(name)
    table = write_table(module.rows(**(module.SHORT if short else {})), folder, name)
    save(module.plot(table), folder, name, formats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all experiments, or some."""
    parser = plot_parser(__doc__, FOLDER)
    parser.prog = "python -m experiments.classical"
    parser.add_argument("names", nargs="*", help=f"Experiments to run; all without any: {', '.join(names())}.")
    parser.add_argument("--short", action="store_true", help="Use the sizes of a trial of seconds.")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(names())):
        parser.error(f"`names` has {', '.join(unknown)}; pass any of {', '.join(names())}.")
    for name in dict.fromkeys(options.names or names()):
        make(name, options.output, options.formats.split(","), options.short)


if __name__ == "__main__":
    main()
