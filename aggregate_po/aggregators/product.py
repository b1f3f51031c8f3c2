"""The product of the token ratios, which is the ratio of the whole completion."""

from dataclasses import dataclass

import torch

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken, TokenRatios
from aggregate_po.masked import masked_sum


@dataclass(frozen=True)
class Product(TokenAggregator):
    """Product of the token ratios (eq. 9): not a mean, every token has weight one and long completions weigh more."""

    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        """See `TokenAggregator.log_aggregate`."""
        return masked_sum(tokens.log_ratio, tokens.response_mask)

    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """One on every response token; shape `batch time`."""
        return torch.where(tokens.response_mask, torch.ones_like(tokens.log_ratio), 0)
