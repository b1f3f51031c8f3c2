"""Objectives by name: recipes of the library, and the reader's own parts by import path."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from aggregate_po import recipes
from aggregate_po.aggregators import TokenAggregator
from aggregate_po.objective import PolicyObjective


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
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "pass the path of a class, function or object that Python can import"
        raise ValueError(f"`name` is {path!r}, which cannot be imported: {error}; {remedy}.") from error


def _called(function: Any, name: str, arguments: dict[str, Any]) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:  # the latter for what is written in C
        raise ValueError(f"`arguments` of {name!r} are {arguments}: {error}; pass those of its signature.") from error
    return function(**arguments)
