"""The interface of a token aggregator."""

from abc import ABC, abstractmethod

import torch

from aggregate_po.batch import PerCompletion, PerToken, TokenRatios
from aggregate_po.derivatives import elementwise_derivative


class TokenAggregator(ABC):
    """Reduces the token log ratios of each completion to one log ratio.

    A subclass writes `log_aggregate`; the gradient weights follow from it. A closed form may override
    `token_weights`, and must then equal the derivative.
    """

    @abstractmethod
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        """Log of the aggregate of the token ratios, finite for an empty completion; shape `batch`."""

    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Concentration `d log_aggregate / d log_ratio` (eq. 5), zero on padding; shape `batch time`.

        By autograd, unless a subclass gives the closed form.
        """
        weights = elementwise_derivative(self.log_aggregate, tokens)
        return torch.where(tokens.response_mask, weights, 0)
