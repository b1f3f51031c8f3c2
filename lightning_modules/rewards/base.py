"""What a reward is."""

from collections.abc import Callable

from lightning_modules.prompts import Example

Reward = Callable[[str, Example], float]  # of a completion, and the example that it answers
