"""The interface of a ratio transform."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.derivatives import elementwise_derivative
from aggregate_po.shapes import require_shape


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


def transformed(ratios: TokenRatios, transform: RatioTransform | None) -> TokenRatios:
    """The context of the next part; the same without a transform.

    Raises:
        ValueError: the transform returned another shape.
    """
    if transform is None:
        return ratios
    log_ratio = transform(ratios)
    require_shape(transform, "__call__", log_ratio, "that of `log_ratio`", ratios.log_ratio.shape)
    with torch.no_grad():
        saturated = transform.saturated(ratios)
    return ratios.transformed(log_ratio, saturated)
