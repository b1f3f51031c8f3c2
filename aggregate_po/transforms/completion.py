"""The ratio of a completion, given to each of its tokens."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import TokenRatios
from aggregate_po.transforms.base import RatioTransform
from aggregate_po.transforms.compose import carried


@dataclass(frozen=True)
class CompletionRatio(RatioTransform):
    """Gives every token the ratio of its completion as a constant, with derivative one in the token's own (eq. 12).

    What follows can then treat each token apart, with an advantage of its own, although they share one ratio.

    Args:
        aggregator: reduces the token ratios of a completion to that one.

    Reference: the token form of GSPO, arXiv:2507.18071.
    """

    aggregator: TokenAggregator

    def __call__(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`.

        Raises:
            ValueError: it was placed after the mean.
        """
        if ratios.log_ratio.ndim != 2:
            raise ValueError(
                f"`log_ratio` has shape {tuple(ratios.log_ratio.shape)}, but CompletionRatio acts on tokens; pass it "
                "as `token_transform`."
            )
        with torch.no_grad():
            log_aggregate = rearrange(self.aggregator.log_aggregate(ratios), "batch -> batch 1")
        return torch.where(ratios.response_mask, carried(log_aggregate, ratios.log_ratio), 0)

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """One on every response token."""
        return ratios.response_mask.to(ratios.log_ratio.dtype)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """Nowhere."""
        return torch.zeros_like(ratios.response_mask)
