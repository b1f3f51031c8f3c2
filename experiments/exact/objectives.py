"""Objectives by name: recipes of the library, and the reader's own parts by import path."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from aggregate_po import PolicyObjective, TokenAggregator, recipes


def objective_of(name: str, **arguments: Any) -> PolicyObjective:
    """Return an objective from the name of a recipe, or the import path of a recipe, an objective or an aggregator.

    An aggregator alone becomes the objective that has no other part.

    Args:
        name: name such as `gmpo`, or import path such as `mypackage.MyMean`.
        arguments: arguments of the recipe or class.

    Raises:
        ValueError: there is no such recipe, or the path leads to nothing of that kind.
    """
    made: Any
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            made = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"`objectives` has {name!r}, which cannot be imported: {error}.") from error
    elif name in recipes.__all__:
        made = getattr(recipes, name)
    else:
        raise ValueError(f"`objectives` has {name!r}; pass one of {', '.join(recipes.__all__)}, or an import path.")
    if inspect.isclass(made) or inspect.isfunction(made):
        made = made(**arguments)
    if isinstance(made, TokenAggregator):
        made = PolicyObjective(made)
    if not isinstance(made, PolicyObjective):
        raise ValueError(f"`objectives` has {name!r}, which gives {made!r}; pass an objective or an aggregator.")
    return made
