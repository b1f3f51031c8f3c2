"""Transforms that read the transition of a denoising step: its divergence and its standard deviation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import EvaluatedTransform, RatioTransform
from aggregate_po.transforms.mask import RatioMask


@dataclass(frozen=True)
class RatioNorm(RatioTransform):
    r"""Removes the bias of a step's log ratio and its dependence on the noise level, $s_t (x_t + D_t)$ (eq. 62).

    The log ratio $x_t$ of a Gaussian transition has mean $-D_t$ under the behavior policy, so ratios are below 1 and,
    with many latent dimensions, an upper bound rarely clips. The result has mean 0 and, for one shift of the
    transition's mean, the same size at every noise level. Pass this before a clip; it reads `divergence` and
    `scale` of the batch.

    The divergence depends on the policy too: give it the graph of the log-probabilities. The derivative of an objective
    by the divergence of a step is then that by its log-probability, see `GradientWeights`.

    Raises:
        ValueError: when called, if the batch has no `divergence` or no `scale`, or after a prefix aggregate or the
            mean.

    Example:
        >>> step = {"divergence": torch.tensor([[0.0125]]), "scale": torch.tensor([[0.5]])}
        >>> RatioNorm()(TokenRatios.of(torch.tensor([[0.0775]]), **step))
        tensor([[0.0450]])

    Reference: GRPO-Guard, arXiv:2510.22319.
    """

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return ratios.required("scale", self) * (ratios.log_ratio + ratios.required("divergence", self))

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Return the standard deviation of the step; the divergence is held fixed."""
        return ratios.required("scale", self)


@dataclass(frozen=True)
class GaussianKLMask(RatioMask):
    r"""Masks steps that moved in the direction of their advantage by too large a divergence (eq. 65).

    A step is masked where $D_t$ is not below the bound, and its ratio is above 1 at a positive advantage or below 1 at
    a negative one. It reads `divergence` of the batch, and all other steps keep their ratio and gradient. A divergence
    that is NaN makes the ratio of its step NaN too, as a log-probability does.

    Args:
        max_divergence: Smallest divergence that is masked; nats, averaged over latent dimensions.

    Raises:
        ValueError: the bound is negative or not finite; when called, if the batch has no `divergence`, or after the
            mean.

    Reference: Flow-DPPO, arXiv:2606.11025.
    """

    max_divergence: float = 1e-5

    def __post_init__(self) -> None:
        require_non_negative(max_divergence=self.max_divergence)

    @override
    def clipped(self, ratios: TokenRatios) -> Tensor:
        far = ratios.required("divergence", self).detach() >= self.max_divergence
        return far & (torch.sign(ratios.advantages) * ratios.raw_log_ratio > 0)

    @override
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        masked, divergence = super().evaluate(ratios), ratios.required("divergence", self).detach()
        # A comparison with NaN would mask nothing.
        unknown = torch.where(divergence.isnan(), divergence, 0).to(masked.value.dtype)
        return replace(masked, value=masked.value + unknown)
