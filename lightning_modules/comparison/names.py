"""Objectives of a comparison, written as in Python: `grpo, gmpo(log_clip=0.2), mypackage.MyMean`."""

from __future__ import annotations

import ast
from typing import Any

from aggregate_po import PolicyObjective, objective_of


def named_objectives(text: str) -> dict[str, PolicyObjective]:
    """Return objectives by their names, in the order of a list that is separated by commas.

    Args:
        text: list of names, such as `grpo,gmpo(log_clip=0.2),mypackage.MyMean`. A name is what
            `aggregate_po.objective_of` takes; arguments follow in parentheses, by their names, as Python writes them.

    Raises:
        ValueError: the list cannot be read, a name is there twice, or there is no such objective.
    """
    try:
        listed = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"`objectives` is {text!r}, which cannot be read ({error.msg}); {_FORM}.") from None
    elements = listed.elts if isinstance(listed, ast.List) else []
    if not elements:
        raise ValueError(f"`objectives` is {text!r}, which has no name; {_FORM}.")
    found: dict[str, PolicyObjective] = {}
    for element in elements:
        label = ast.unparse(element)
        if label in found:
            raise ValueError(f"`objectives` has {label!r} twice; pass it once.")
        name, arguments = _parts(element)
        try:
            found[label] = objective_of(name, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`objectives` has {label!r}, which cannot be made: {error}") from error
    return found


_FORM = "pass names with commas between them, such as grpo,gmpo(log_clip=0.2),mypackage.MyMean"


def _parts(element: ast.expr) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of one objective."""
    called = element if isinstance(element, ast.Call) else None
    name = element if called is None else called.func
    if not isinstance(name, (ast.Name, ast.Attribute)):
        raise ValueError(f"`objectives` has {ast.unparse(element)!r}, which is no name; {_FORM}.")
    if called is None:
        return ast.unparse(name), {}
    try:
        if called.args:
            raise ValueError("an argument has no name")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in called.keywords}
    except ValueError as error:
        raise ValueError(
            f"`objectives` has {ast.unparse(element)!r}, whose arguments cannot be read ({error}); pass numbers and "
            "texts by name, or the import path of a function of your own that makes the objective."
        ) from None
    return ast.unparse(name), arguments
