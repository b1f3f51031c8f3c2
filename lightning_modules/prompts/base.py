"""Base class of prompt sources."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

Example = Mapping[str, Any]


class PromptDataset(Sequence[Example], ABC):
    """Base class of prompt sources: a sequence of examples.

    An example is a mapping with a string under "prompt" and the fields that the reward reads. A subclass implements
    `__len__` and `__getitem__`; the same index must always return the same example.
    """
