"""Ratio of a completion, assigned to each of its tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import RatioTransform
from aggregate_po.transforms.compose import carried


@dataclass(frozen=True)
class CompletionRatio(RatioTransform):
    """Assigns the ratio of the completion to every token, detached, with derivative one in the token's own (eq. 12).

    All tokens of a completion then have one ratio, but each can have its own advantage and its own clip.

    Args:
        aggregator: Aggregator that computes the ratio of a completion.

    Reference: the token form of GSPO, arXiv:2507.18071.
    """

    aggregator: TokenAggregator

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return self.aggregator.takes_mean_weights

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        """Return the log ratio of its completion for each token.

        Raises:
            ValueError: the transform is applied after the mean.
        """
        if ratios.log_ratio.ndim != 2:
            raise ValueError(
                f"`log_ratio` has shape {tuple(ratios.log_ratio.shape)}, but CompletionRatio acts on tokens; pass it "
                "as `token_transform`."
            )
        with torch.no_grad():
            log_aggregate = rearrange(self.aggregator.log_aggregate(ratios), "batch -> batch 1")
        return torch.where(ratios.response_mask, carried(log_aggregate, ratios.log_ratio), 0)

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        """Return one on every response token."""
        return ratios.response_mask.to(ratios.log_ratio.dtype)

    @override
    def saturated(self, ratios: TokenRatios) -> Tensor:
        """Return False everywhere."""
        return torch.zeros_like(ratios.response_mask)
