"""What a source of prompts gives."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

Example = Mapping[str, Any]


class PromptDataset(Sequence[Example], ABC):
    """Examples by index: mappings with a text under "prompt", and whatever the reward reads.

    Subclass requirements:

    - Implement `__len__` and `__getitem__`. The same index must give the same example on every rank and after a resume.
    - Do not shuffle. `RolloutDataModule` permutes the examples in each pass, by its seed.
    - Constructor arguments become options of the command line, so annotate and document them.
    """
