"""Type of a reward function."""

from collections.abc import Callable

from lightning_modules.prompts import Example

Reward = Callable[[str, Example], float]  # takes a completion and the example of its prompt
