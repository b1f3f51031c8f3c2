"""`aggregate-po compare`: any objectives on the same recorded optimizer steps, without training."""

from lightning_modules.comparison.compare import Comparison, compare_objectives
from lightning_modules.comparison.gradients import ParameterGradients, parameter_gradients
from lightning_modules.comparison.names import named_objectives

__all__ = ["Comparison", "ParameterGradients", "compare_objectives", "named_objectives", "parameter_gradients"]
