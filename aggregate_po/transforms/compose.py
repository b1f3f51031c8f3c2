"""Transforms made of transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.transforms.base import RatioTransform, transformed


@dataclass(frozen=True)
class Chain(RatioTransform):
    """Transforms one after the other; its derivative is the product of theirs.

    Args:
        transforms: the first one sees the log ratios as they come.

    Raises:
        TypeError: one of them is no `RatioTransform`.

    Example:
        >>> from aggregate_po.transforms import NegativeCap, PessimisticClip
        >>> dual_clip = Chain([PessimisticClip(0.2, 0.2), NegativeCap(3.0)])
        >>> ratios = TokenRatios.of(torch.tensor([[1.5]]), advantages=torch.tensor([-1.0]))
        >>> dual_clip(ratios).exp()
        tensor([[3.]])
    """

    transforms: Sequence[RatioTransform]

    def __post_init__(self) -> None:
        for transform in self.transforms:
            if not isinstance(transform, RatioTransform):
                raise TypeError(f"`transforms` has {transform!r}; pass instances of subclasses of RatioTransform.")
        object.__setattr__(self, "transforms", tuple(self.transforms))

    def __call__(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        for transform in self.transforms:
            ratios = transformed(ratios, transform)
        return ratios.log_ratio

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Product of the derivatives, each where its transform stands."""
        product = torch.ones_like(ratios.log_ratio)
        for transform, stage in self._stages(ratios):
            product = product * transform.derivative(stage)
        return product

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """True where one of them is."""
        anywhere = torch.zeros_like(ratios.response_mask)
        for transform, stage in self._stages(ratios):
            anywhere = anywhere | transform.saturated(stage)
        return anywhere

    def _stages(self, ratios: TokenRatios) -> Iterator[tuple[RatioTransform, TokenRatios]]:
        for transform in self.transforms:
            yield transform, ratios
            ratios = transformed(ratios, transform)


@dataclass(frozen=True)
class StraightThrough(RatioTransform):
    """The values of another transform, as a constant, with derivative one (eq. 11).

    This is how an objective that multiplies `log_probs` by a detached weight is said in ratios: the gradient is the
    weight's, while the value of the objective is the weight itself and not the surrogate of the paper.

    Args:
        transform: gives the log weights.
    """

    transform: RatioTransform

    def __call__(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        return carried(self.transform(ratios), ratios.log_ratio)

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """One."""
        return torch.ones_like(ratios.log_ratio)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """Nowhere."""
        return torch.zeros_like(ratios.response_mask)


def carried(values: Tensor, log_ratio: Tensor) -> Tensor:
    """`values` as constants, with the derivative of `log_ratio`."""
    return values.detach() + (log_ratio - log_ratio.detach())
