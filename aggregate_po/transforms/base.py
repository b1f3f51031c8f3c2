"""The interface of a ratio transform."""

from abc import ABC, abstractmethod

from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.derivatives import elementwise_derivative


class RatioTransform(ABC):
    """Maps log ratios to log ratios, elementwise: before the mean, shape `batch time`, or after it, shape `batch`."""

    @abstractmethod
    def __call__(self, ratios: TokenRatios) -> Tensor:
        """Transformed log ratios, in the shape of `ratios.log_ratio`."""

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Derivative with respect to the log ratio; by autograd, unless a subclass gives the closed form."""
        return elementwise_derivative(self, ratios)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """True where the transform lets no gradient through."""
        return self.derivative(ratios) == 0
