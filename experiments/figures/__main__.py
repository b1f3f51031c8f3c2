"""All plots of the documentation, with their data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "assets" / "figures"


@dataclass(frozen=True)
class Script:
    """A script that makes plots, each `NAME.svg` with its data in `NAME.csv`.

    Args:
        module: Module of the script.
        arguments: Arguments of its command line, without the folder.
        names: Names of the plots.
    """

    module: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]

    def run(self, folder: Path, *more: str) -> None:
        """Make the plots.

        Args:
            folder: Folder of the files.
            more: Further arguments.
        """
        import_module(self.module).main([*self.arguments, *more, "--output", str(folder)])


SCRIPTS = (
    Script(
        "experiments.exact.bias_variance",
        (),
        ("bias_variance_random", "bias_variance_gradient", "bias_variance_plane"),
    ),
    Script("experiments.exact.clip_width", (), ("clip_width",)),
    Script("experiments.exact.completion_length", (), ("completion_length",)),
    Script("experiments.exact.ess_target", (), ("ess_target",)),
    Script("experiments.exact.exponent", (), ("exponent",)),
    Script("experiments.exact.group_size", (), ("group_size",)),
    Script("experiments.exact.learning_curves", (), ("learning_curves",)),
    Script("experiments.exact.on_policy_bias", ("--vocabulary", "3", "--stop"), ("on_policy_bias",)),
    Script("experiments.exact.ratio_bias", (), ("ratio_bias",)),
    Script("experiments.figures.frozen_weights", (), ("frozen_weights",)),
    Script("experiments.figures.mean_values", (), ("mean_values",)),
    Script("experiments.figures.power_weights", (), ("power_weights",)),
    Script("experiments.figures.training_curves", (), ("training_curves",)),
    Script("experiments.figures.weight_landscape", (), ("weight_landscape",)),
    Script("experiments.flow.plots", (), ("flow_samples", "flow_curves", "flow_steps")),
    Script("experiments.study.plots", (), ("study_curves", "study_edges", "study_fidelity", "study_runs")),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all plots, or some."""
    parser = argparse.ArgumentParser("python -m experiments.figures", description=__doc__)
    parser.add_argument("names", nargs="*", help="Plots to make; all without any.")
    parser.add_argument(
        "--output", type=Path, default=FOLDER, help="Folder of the files; that of the documentation without it."
    )
    options = parser.parse_args(arguments)
    known = {name: script for script in SCRIPTS for name in script.names}
    if unknown := sorted(set(options.names) - known.keys()):
        parser.error(f"`names` has {', '.join(unknown)}; pass any of {', '.join(known)}.")
    for script in dict.fromkeys(known[name] for name in options.names or known):
        print(script.module, *script.arguments, flush=True)
        script.run(options.output)


if __name__ == "__main__":
    main()
