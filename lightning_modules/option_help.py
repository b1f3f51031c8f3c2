"""Help for an import path that the argument parser cannot explain: a function, or a class without options."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import TypeGuard

from lightning.pytorch.cli import LightningArgumentParser


def prepare_import_paths(arguments: Sequence[str]) -> None:
    """Let import paths name modules of the working folder; if the arguments ask for help on one, print it and exit.

    A user's aggregator or reward is named by its import path, and its file is usually in the working folder.

    Args:
        arguments: arguments of the command line.

    Raises:
        SystemExit: help was printed.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if text := help_of_import_path(arguments):
        print(text)
        sys.exit()


def help_of_import_path(arguments: Sequence[str]) -> str | None:
    """Return the help for the import path after an option such as `--model.objective.help`.

    The parser itself explains classes with options. It does not accept functions, such as recipes, and prints only the
    name of a class without options.

    Args:
        arguments: arguments of the command line.

    Returns:
        Help of the function or class; None if no such option is there, or if the parser explains its import path.
    """
    for option, path in _help_options(arguments):
        named = _named(path)
        if _is_factory(named) or _has_no_options(named):
            return _help_text(option, path, named)
    return None


def _help_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return each option that ends with `.help`, without that ending, and its value."""
    words = [word for argument in arguments for word in argument.split("=", maxsplit=1)]
    return [(word[2:-5], path) for word, path in pairwise(words) if word.startswith("--") and word.endswith(".help")]


def _named(path: str) -> object:
    """Return the object with this import path, or None; the parser reports errors of the import."""
    module, _, name = path.rpartition(".")
    try:
        # Not `pydoc.locate`, which from Python 3.13 on prefers a module `gmpo` to the function of that name.
        return getattr(import_module(module), name, None)
    except Exception:
        return None


def _is_factory(named: object) -> TypeGuard[FunctionType]:
    return inspect.isfunction(named) and "return" in named.__annotations__


def _has_no_options(named: object) -> bool:
    try:
        return inspect.isclass(named) and not inspect.signature(named).parameters
    except ValueError:  # a builtin
        return False


def _help_text(option: str, path: str, named: object) -> str:
    summary = " ".join((inspect.getdoc(named) or "").partition("\n\n")[0].split())
    description = f"Help for --{option}.help={path}"
    parser = LightningArgumentParser(usage=argparse.SUPPRESS, add_help=False, description=description)
    if _is_factory(named):
        group = parser.add_argument_group(title=summary.removesuffix(".") or None)
        group.add_function_arguments(named, nested_key=option, as_group=False, fail_untyped=False)
        return parser.format_help()
    return f"{parser.format_help()}\n{summary}\nIt has no options.\n"
