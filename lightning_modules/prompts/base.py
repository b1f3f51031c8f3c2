"""What a source of prompts gives."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

Example = Mapping[str, Any]


class PromptDataset(Sequence[Example], ABC):
    """Examples by index: mappings with a text under "prompt", and whatever the reward reads."""
