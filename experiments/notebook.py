"""Runs the cells of a notebook without Jupyter, and keeps its plots.

python -m experiments.notebook docs/notebooks/gmpo-against-grpo.ipynb
python -m experiments.notebook docs/notebooks/gmpo-against-grpo.ipynb --set STEPS=8 WARM_START=20
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib import pyplot as plt

from experiments.figures.style import SETTINGS, save

_WRITE = "%%writefile "  # the only magic command that is known


def run_notebook(path: Path, parameters: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run the code cells of a notebook one after the other, in a folder, and return the names that they define.

    Args:
        path: Notebook.
        parameters: Values of names that replace those of the cell with the tag `parameters`.
        folder: Working folder of the cells. Plot number N is saved there as `NAME-N.svg`.

    Raises:
        ValueError: a name is not one of the parameters.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    folder.mkdir(parents=True, exist_ok=True)
    defined: dict[str, Any] = {"__name__": "__main__"}
    plt.close("all")  # plots that something else has left open in this process are not those of the notebook
    with _inside(folder), plt.rc_context(SETTINGS), mock.patch.object(plt, "show", _PlotFiles(path.stem)):
        for cell in cells:
            if cell["cell_type"] != "code":
                continue
            code = "".join(cell["source"])
            if code.startswith(_WRITE):
                name, _, code = code.removeprefix(_WRITE).partition("\n")
                Path(name).write_text(code, encoding="utf-8")
                importlib.invalidate_caches()  # of a folder that was listed in the same moment
                continue
            exec(compile(code, f"{path.name}, {cell['id']}", "exec"), defined)
            if "parameters" in cell["metadata"].get("tags", ()):
                known = sorted(name for name in defined if not name.startswith("__"))
                if unknown := sorted(parameters.keys() - {*known}):
                    raise ValueError(
                        f"`parameters` has {', '.join(unknown)}, which {path.name} does not set; pass any of "
                        f"{', '.join(known)}."
                    )
                defined |= parameters
    return defined


class _PlotFiles:
    """Replacement of `plt.show` that saves what it would show."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0

    def __call__(self) -> None:
        for canvas in map(plt.figure, plt.get_fignums()):
            self.number += 1
            save(canvas, Path(), f"{self.name}-{self.number}")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and import modules from it."""
    with contextlib.chdir(folder), mock.patch.object(sys, "path", [str(folder.resolve()), *sys.path]):
        yield


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE with a Python number or text") from None


def main(arguments: list[str] | None = None) -> None:
    """Run a notebook from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/notebooks"), help="Working folder of the cells.")
    parser.add_argument("--set", nargs="*", type=_parameter, default=[], metavar="NAME=VALUE", help="Parameters.")
    options = parser.parse_args(arguments)
    run_notebook(options.notebook, dict(options.set), options.output)


if __name__ == "__main__":
    main()
