"""Objectives by name: recipes of the library, and the reader's own parts by import path."""

from __future__ import annotations

import importlib
import inspect
import sysconfig
import traceback
from typing import Any

from aggregate_po import recipes
from aggregate_po.aggregators import TokenAggregator
from aggregate_po.objective import PolicyObjective

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def objective_of(name: str, **arguments: Any) -> PolicyObjective:
    """Return an objective from the name of a recipe, or the import path of a recipe, an objective or an aggregator.

    An aggregator alone becomes the objective that has no other part.

    Args:
        name: Name of a recipe such as `gmpo`, or import path such as `mypackage.MyMean`.
        arguments: Arguments of the recipe, function or class.

    Raises:
        ValueError: There is no such recipe, the path leads to nothing of that kind, or the arguments do not fit.

    Example:
        >>> objective_of("gmpo", log_clip=0.2).token_transform
        LogPessimisticClip(log_clip_low=0.2, log_clip_high=0.2)
        >>> objective_of("aggregate_po.LehmerMean", order=2.0).aggregator
        LehmerMean(order=2.0)
    """
    found = _imported(name) if "." in name else _recipe(name)
    if isinstance(found, (PolicyObjective, TokenAggregator)) or not callable(found):
        if arguments:
            raise ValueError(f"`arguments` are {arguments}, but `name` {name!r} takes none; pass a class or function.")
        made = found
    else:
        made = _called(found, name, arguments)
    if isinstance(made, TokenAggregator):
        made = PolicyObjective(made)
    if not isinstance(made, PolicyObjective):
        raise ValueError(f"`name` is {name!r}, which gives {made!r}; pass an objective or an aggregator.")
    return made


def _recipe(name: str) -> Any:
    if name not in recipes.__all__:
        raise ValueError(f"`name` is {name!r}; pass one of {', '.join(recipes.__all__)}, or an import path.")
    return getattr(recipes, name)


def _imported(path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a file that is imported may raise any
        remedy = "pass the path of a class, function or object that Python can import"
        raise ValueError(f"`name` is {path!r}, which cannot be imported: {_said(error)}; {remedy}.") from error


def _said(error: Exception) -> str:
    """Return the message of an import's error, with the file and the line that it comes from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_a_file(frame.filename)]
    if not frames:
        return str(error)
    last = ([frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames)[-1]
    return f"{type(error).__name__}: {error} (raised in {last.filename}, line {last.lineno})"


def _is_of_a_file(filename: str) -> bool:
    """Whether code is of a file that was imported, rather than of the import itself."""
    return not filename.startswith("<") and filename not in (__file__, importlib.__file__)


def _called(function: Any, name: str, arguments: dict[str, Any]) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:  # the latter for what is written in C
        raise ValueError(f"`arguments` of {name!r} are {arguments}: {error}; pass those of its signature.") from error
    return function(**arguments)
