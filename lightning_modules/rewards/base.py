"""Type of a reward function."""

from collections.abc import Callable

from lightning_modules.prompts import Example

Reward = Callable[[str, Example], float]
"""Scores a completion, given the example that it answers.

Requirements:

- Return one finite number; anything else stops the run. By default 0 replaces it where a completion was cut off.
- The completion is text without the stop token that ended it; other special tokens, such as `</think>` of some models,
  remain, unless `data.skip_special_tokens` is set. The example is the data set's mapping, with "prompt" and its fields.
- Be deterministic and keep no state, so that a resumed run repeats the same rewards. Each data-parallel rank scores its
  own completions.
- The name of the function, or of the class of a callable object, names the metrics `rewards/NAME/mean`.
"""
