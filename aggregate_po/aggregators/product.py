"""Product of the token ratios, which is the ratio of the whole completion."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken, TokenRatios
from aggregate_po.masked import masked_sum


@dataclass(frozen=True)
class Product(TokenAggregator):
    """Product of the token ratios (eq. 9).

    The product is not a mean: every token has weight one, so the weights of a completion sum to its length.
    """

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        return masked_sum(tokens.log_ratio, tokens.response_mask)

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return one on every response token; shape `batch time`."""
        return torch.where(tokens.response_mask, torch.ones_like(tokens.log_ratio), 0)
