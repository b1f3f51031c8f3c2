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

    def log_terms(self, tokens: TokenRatios) -> PerToken:
        """Logs of terms, one per token, whose sum is the aggregate; shape `batch time`.

        A token's term can carry an advantage of its own (eq. 19). An aggregate that is no such sum, or whose terms
        mix tokens, has no definition for advantages per token.

        Raises:
            ValueError: there are no such terms.
        """
        raise ValueError(
            f"`advantages` has shape `batch time`, but {type(self).__name__} has no definition for advantages per "
            "token: its aggregate is no sum over tokens; pass one advantage per completion, or use ArithmeticMean."
        )


class Mean(TokenAggregator):
    """An aggregator that claims to be a mean: it lies between the smallest and the largest ratio.

    The claim adds no code; `aggregate_po.testing` holds the subclass to it.
    """


class HomogeneousMean(Mean):
    """A mean that a common factor of all ratios passes through, so that its weights sum to one."""
