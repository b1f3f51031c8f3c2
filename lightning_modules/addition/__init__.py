"""The task of the default job: sums, and a small model that has seen some."""

from lightning_modules.addition.problems import AdditionProblems
from lightning_modules.addition.warm_start import AdditionWarmStart

__all__ = ["AdditionProblems", "AdditionWarmStart"]
