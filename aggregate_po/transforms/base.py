"""Interface of ratio transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.derivatives import elementwise_derivative
from aggregate_po.shapes import require_shape
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class EvaluatedTransform:
    """Value, derivative and saturation of a transform on one context; each has the shape of `log_ratio`.

    Args:
        value: Transformed log ratios, attached to the graph of `log_ratio`.
        derivative: Derivative of each value with respect to its own log ratio; detached.
        saturated: True where the derivative is zero.
    """

    value: Tensor
    derivative: Tensor
    saturated: Tensor

    @classmethod
    def identity(cls, log_ratio: Tensor) -> EvaluatedTransform:
        """Return the result of the identity transform: `log_ratio` itself, with derivative one."""
        return cls(log_ratio, torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))


class RatioTransform(ABC):
    """Elementwise map of log ratios, before the mean (shape `batch time`) or after the mean (shape `batch`).

    Subclass requirements:

    - Implement `__call__`. It must be elementwise and differentiable, and return the shape of `ratios.log_ratio`. Value
      and derivative must be finite for log ratios within +-80 before the mean; after the mean for any finite log ratio,
      because the product over a long completion has one of thousands.
    - May override `derivative` with a closed form, which must equal the derivative of `__call__`. Without it, the
      derivative comes from autograd.
    - May override `saturated`, which is where the derivative is zero.
    - Override `takes_mean_weights` to return False if the transform has no definition for tokens that count by weights,
      and `reads_positions` to return True if it reads `ratios.positions`.
    - May override `evaluate`; derive from `JointTransform` if value and derivative come from one computation.

    `aggregate_po.testing.check_transform` checks these requirements.
    """

    @property
    def takes_mean_weights(self) -> bool:
        """Whether the transform is defined for tokens with `mean_weights`, as each is that maps elements alone."""
        return True

    @property
    def reads_positions(self) -> bool:
        """Whether the transform reads `ratios.positions`; before the mean, two copies of a token would differ in them.

        An objective then refuses `mean_weights` for it as `token_transform`.
        """
        return False

    @abstractmethod
    def __call__(self, ratios: TokenRatios) -> Tensor:
        """Return the transformed log ratios, in the shape of `ratios.log_ratio`."""

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Return the derivative with respect to the log ratio, by autograd unless overridden."""
        return elementwise_derivative(self, ratios)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """Return True where the derivative is zero."""
        return self.derivative(ratios) == 0

    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return value, derivative and saturation together.

        The default calls `__call__` and `derivative` once each; a transform is saturated where its derivative is zero.
        """
        value = self(ratios)
        with torch.no_grad():
            derivative = self.derivative(ratios)
        return EvaluatedTransform(value, derivative, derivative == 0)


class JointTransform(RatioTransform):
    """Transform that computes value, derivative and saturation together.

    A subclass implements `evaluate`; the separate methods return its parts.
    """

    @abstractmethod
    @override
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the value, attached to the graph, and the detached derivative and saturation."""

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return self.evaluate(ratios).value

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        return self.evaluate(ratios).derivative

    @override
    def saturated(self, ratios: TokenRatios) -> Tensor:
        return self.evaluate(ratios).saturated


def evaluated(transform: RatioTransform, ratios: TokenRatios) -> EvaluatedTransform:
    """Evaluate a transform and check the shape of its value.

    Raises:
        ValueError: the transform returned another shape.
    """
    result = transform.evaluate(ratios)
    require_shape(transform, "__call__", result.value, "that of `log_ratio`", ratios.log_ratio.shape)
    return result
