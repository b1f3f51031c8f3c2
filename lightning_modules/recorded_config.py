"""Check that the configuration of a run can be recorded, so that the run can be evaluated, resumed and repeated."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser, Namespace

_UNRECORDED = "Unable to serialize instance "  # jsonargparse writes this text in place of the value, and warns


def require_recordable(parser: ArgumentParser, config: Namespace) -> None:
    """Check that every value of a configuration has a form that the parser can read again.

    Raises:
        ValueError: a value has none, such as a bound method, which has no import path.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorded = json.loads(parser.dump(config, skip_none=False, format="json"))
    for name, value in _leaves(recorded):
        if isinstance(value, str) and value.startswith(_UNRECORDED):
            raise ValueError(
                f"`{name}` is {value.removeprefix(_UNRECORDED)}, which `config.yaml` could not name, so that the run "
                "could be neither evaluated nor repeated from it; pass the import path of a class, or of a function or "
                "an object that is defined at the top of a module."
            )


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested configuration with their dotted names."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list):
        for child in node:
            yield from _leaves(child, name)
    else:
        yield name, node
