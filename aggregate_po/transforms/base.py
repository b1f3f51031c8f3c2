"""The interface of a ratio transform."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.derivatives import elementwise_derivative
from aggregate_po.shapes import require_shape


@dataclass(frozen=True)
class EvaluatedTransform:
    """Value, derivative and saturation of a transform on one context; each has the shape of `log_ratio`.

    Args:
        value: transformed log ratios, attached to the graph of `log_ratio`.
        derivative: derivative of each value with respect to its own log ratio; detached.
        saturated: True where the transform lets no gradient through.
    """

    value: Tensor
    derivative: Tensor
    saturated: Tensor

    @classmethod
    def identity(cls, log_ratio: Tensor) -> EvaluatedTransform:
        """Return what a transform without effect gives: `log_ratio` itself, with derivative one."""
        return cls(log_ratio, torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))


class RatioTransform(ABC):
    """Maps log ratios to log ratios, elementwise: before the mean, shape `batch time`, or after it, shape `batch`.

    Subclass requirements:

    - Implement `__call__`. It must be elementwise, differentiable and finite for log ratios within +-80, and return the
      shape of `ratios.log_ratio`.
    - May override `derivative` with a closed form, which must equal the derivative of `__call__`. Without it, the
      derivative comes from autograd.
    - May override `saturated`, which is where the derivative is zero.
    - May override `evaluate`; derive from `JointTransform` if value and derivative come from one computation.

    `aggregate_po.testing.check_transform` checks these requirements.
    """

    @abstractmethod
    def __call__(self, ratios: TokenRatios) -> Tensor:
        """Transformed log ratios, in the shape of `ratios.log_ratio`."""

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Derivative with respect to the log ratio; by autograd, unless a subclass gives the closed form."""
        return elementwise_derivative(self, ratios)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """True where the transform lets no gradient through."""
        return self.derivative(ratios) == 0

    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return value, derivative and saturation together, as an objective asks for them.

        By `__call__` and `derivative`, one time each; a transform is saturated where its derivative is zero.
        """
        value = self(ratios)
        with torch.no_grad():
            derivative = self.derivative(ratios)
        return EvaluatedTransform(value, derivative, derivative == 0)


class JointTransform(RatioTransform):
    """A transform whose value, derivative and saturation come from one computation.

    A subclass writes `evaluate`; the separate methods are views of it.
    """

    @abstractmethod
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the value, attached to the graph, with derivative and saturation, detached."""

    def __call__(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        return self.evaluate(ratios).value

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        return self.evaluate(ratios).derivative

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        return self.evaluate(ratios).saturated


def evaluated(transform: RatioTransform, ratios: TokenRatios) -> EvaluatedTransform:
    """Evaluate a transform and check the shape of its value.

    Raises:
        ValueError: the transform returned another shape.
    """
    result = transform.evaluate(ratios)
    require_shape(transform, "__call__", result.value, "that of `log_ratio`", ratios.log_ratio.shape)
    return result
