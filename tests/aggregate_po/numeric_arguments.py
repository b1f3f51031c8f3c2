"""The numeric arguments of all public classes and recipes of a package."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class NumericArgument:
    """A parameter that takes a real number, with the other arguments that its class or function needs."""

    owner: Any
    name: str
    others: dict[str, Any]

    def __str__(self):
        return f"{self.owner.__qualname__}.{self.name}"

    def given(self, number):
        """Build the object with the number."""
        return self.owner(**{**self.others, self.name: number})

    @property
    def entry(self):
        """The text of the argument in the docstring."""
        match = re.search(rf"\n( *){self.name}: (.*?)(?=\n\1\S|\n\n|$)", self.owner.__doc__ or "", re.DOTALL)
        return match[2] if match else ""


def numeric_arguments(package, required, records=()):
    """Return the numeric arguments of the public names of a package, except those of records that it makes itself.

    Args:
        package: an imported package.
        required: a valid value for each argument without a default, by its name.
        records: names of classes that are made by the library and hold what it has computed.
    """
    found = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".testing" in module.name or module.name.endswith("__main__"):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:  # of what is optional
            continue
        for name, owner in names.items():
            if name.startswith("_") or name in records or getattr(owner, "__module__", None) != module.name:
                continue
            if _is_built_by_users(owner) or ".recipes." in module.name:
                found |= {str(argument): argument for argument in _of(owner, required)}
    return [pytest.param(argument, id=name) for name, argument in found.items()]


def _is_built_by_users(owner):
    # A subclass of a builtin type has no signature from Python 3.13 on.
    builtin = inspect.isclass(owner) and issubclass(owner, (Exception, str))
    return inspect.isclass(owner) and not inspect.isabstract(owner) and not builtin


def _of(owner, required):
    parameters = inspect.signature(owner).parameters.values()
    others = {p.name: required[p.name] for p in parameters if p.default is p.empty and p.name in required}
    for parameter in parameters:
        if re.search(r"\bfloat\b", str(parameter.annotation)):
            yield NumericArgument(owner, parameter.name, others)
