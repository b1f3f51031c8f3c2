"""Task of the default configuration: addition problems, and a small model with a supervised warm start."""

from lightning_modules.addition.drafts import DraftedWarmStart
from lightning_modules.addition.problems import AdditionProblems
from lightning_modules.addition.warm_start import AdditionWarmStart

__all__ = ["AdditionProblems", "AdditionWarmStart", "DraftedWarmStart"]
