"""`aggregate-po example`: the configuration of the default job, for an installation without a checkout."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.resources import files

_DESCRIPTION = (
    "Print the configuration of the default job, in which a small model learns addition on two processors: "
    "`aggregate-po example > addition.yaml`, then `aggregate-po fit --config addition.yaml`."
)


def example_command(arguments: Sequence[str]) -> None:
    """Run `aggregate-po example`."""
    ArgumentParser(prog="aggregate-po example", description=_DESCRIPTION).parse_args(list(arguments))
    print(files("lightning_modules").joinpath("addition", "addition.yaml").read_text(encoding="utf-8"), end="")
