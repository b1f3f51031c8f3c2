"""Type of a reward function."""

from collections.abc import Callable

from lightning_modules.prompts import Example

Reward = Callable[[str, Example], float]
"""Scores a completion, given the example that it answers.

Requirements:

- Return one finite number: a float, bool, int, Decimal, Fraction, or a scalar of NumPy or torch; or a `Verdict`.
  Anything else stops the run, and so does `sys.exit`. Values are kept in float64. By default 0 replaces the reward of a
  completion that was cut off.
- The completion is text without the stop token that ended it; other special tokens, such as `</think>` of some models,
  remain, unless `data.skip_special_tokens` is set. The example is a copy of the data set's mapping, as a dictionary
  with "prompt" and its fields; changes to it have no effect elsewhere.
- Be deterministic and keep no state, so that a resumed run repeats the same rewards. Each data-parallel rank scores its
  own completions.
- The name of the function, or of the class of a callable object, names the metrics `rewards/NAME/mean`.
"""
