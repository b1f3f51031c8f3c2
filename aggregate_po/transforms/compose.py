"""Transforms made of transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import EvaluatedTransform, JointTransform, RatioTransform, evaluated


@dataclass(frozen=True)
class Chain(JointTransform):
    """Composition of transforms; its derivative is the product of their derivatives.

    Args:
        transforms: Transforms, in the order in which they are applied.

    Raises:
        TypeError: a transform is not a `RatioTransform`.

    Example:
        >>> from aggregate_po.transforms import NegativeCap, PessimisticClip
        >>> dual_clip = Chain([PessimisticClip(0.2, 0.2), NegativeCap(3.0)])
        >>> ratios = TokenRatios.of(torch.tensor([[1.5]]), advantages=torch.tensor([-1.0]))
        >>> dual_clip(ratios).exp()
        tensor([[3.]])
    """

    transforms: Sequence[RatioTransform]

    def __post_init__(self) -> None:
        if isinstance(self.transforms, RatioTransform):
            raise TypeError(f"`transforms` is {self.transforms!r}; pass a list of transforms, even for a single one.")
        for transform in self.transforms:
            if not isinstance(transform, RatioTransform):
                raise TypeError(f"`transforms` has {transform!r}; pass instances of subclasses of RatioTransform.")
        object.__setattr__(self, "transforms", tuple(self.transforms))

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return all(transform.takes_mean_weights for transform in self.transforms)

    @property
    @override
    def reads_positions(self) -> bool:
        return any(transform.reads_positions for transform in self.transforms)

    @override
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the last value, the product of the derivatives, and True where any transform is saturated.

        Raises:
            ValueError: a transform returned a wrong shape.
        """
        whole = EvaluatedTransform.identity(ratios.log_ratio)
        for transform in self.transforms:
            stage = evaluated(transform, ratios)
            ratios = ratios.transformed(stage.value, stage.saturated)
            whole = EvaluatedTransform(
                stage.value, whole.derivative * stage.derivative, whole.saturated | stage.saturated
            )
        return whole


@dataclass(frozen=True)
class StraightThrough(RatioTransform):
    """Values of another transform as constants, with derivative one (eq. 11).

    This expresses an objective that multiplies `log_probs` by a detached weight: the gradient is the same, whereas the
    value of the objective is the weight itself and not the surrogate of the paper.

    Args:
        transform: Transform whose value is the logarithm of the weight.
    """

    transform: RatioTransform

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return self.transform.takes_mean_weights

    @property
    @override
    def reads_positions(self) -> bool:
        return self.transform.reads_positions

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return carried(self.transform(ratios), ratios.log_ratio)

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Return one everywhere."""
        return torch.ones_like(ratios.log_ratio)

    @override
    def saturated(self, ratios: TokenRatios) -> Tensor:
        """Return False everywhere."""
        return torch.zeros_like(ratios.response_mask)


def carried(values: Tensor, log_ratio: Tensor) -> Tensor:
    """Return `values` as constants, with the derivative of `log_ratio`."""
    return values.detach() + (log_ratio - log_ratio.detach())
