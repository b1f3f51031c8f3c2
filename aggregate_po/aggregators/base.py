"""Interface of token aggregators."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.derivatives import elementwise_derivative
from aggregate_po.masked import divisor, masked_sum
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class EvaluatedAggregator:
    """Value and gradient of an aggregator on one context.

    Args:
        log_aggregate: log of the aggregate of each completion, attached to the graph of the log ratios; shape `batch`.
        token_weights: derivative of the log aggregate with respect to each log ratio, zero on padding; detached; shape
            `batch time`.
        exponents: exponent that a rule chose for each completion, None without a rule; detached; shape `batch`.
    """

    log_aggregate: PerCompletion
    token_weights: PerToken
    exponents: PerCompletion | None = None


class TokenAggregator(ABC):
    """Reduces the token log ratios of each completion to one log ratio.

    Subclass requirements:

    - Implement `log_aggregate`. It must be differentiable and finite for log ratios within +-80. Padding and the other
      completions of the batch must have no effect, so reduce with `aggregate_po.masked`.
    - May override `token_weights` with a closed form, which must equal the derivative of `log_aggregate`. Without it,
      the weights come from autograd.
    - May override `evaluate` if value and weights share expensive work. It must return what the two methods return.
    - Pass `tokens.mean_weights` to every reduction and override `takes_mean_weights` to return True, so that tokens can
      count by weights. An objective refuses weights that its aggregator would not read.
    - Derive from `Mean` or `HomogeneousMean` instead if what that class claims is true.

    `aggregate_po.testing.check_aggregator` checks these requirements.
    """

    @property
    def takes_mean_weights(self) -> bool:
        """Whether tokens count by `tokens.mean_weights`: a weight of 0 as no token, of 2 as two."""
        return False

    @abstractmethod
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        """Return the log of the aggregate of the token ratios, finite for an empty completion; shape `batch`."""

    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return the concentration `d log_aggregate / d log_ratio` (eq. 5), zero on padding; shape `batch time`.

        The default uses autograd; a subclass may override it with a closed form.
        """
        weights = elementwise_derivative(self.log_aggregate, tokens)
        return torch.where(tokens.response_mask, weights, 0)

    def evaluate(self, tokens: TokenRatios) -> EvaluatedAggregator:
        """Return value and weights together; the default calls each of the two methods once."""
        log_aggregate = self.log_aggregate(tokens)
        with torch.no_grad():
            return EvaluatedAggregator(log_aggregate, self.token_weights(tokens))


class Mean(TokenAggregator):
    """Aggregator that is a mean: its value lies between the smallest and the largest ratio.

    The class adds no code; `aggregate_po.testing` tests the property.
    """


class HomogeneousMean(Mean):
    """Homogeneous mean: multiplying all ratios by a factor multiplies the mean, so its weights sum to one."""


def shares_of(token_weights: PerToken, tokens: TokenRatios) -> PerToken:
    """Return the share of the aggregate that each token contributes: its weight over the sum; shape `batch time`.

    Where the weights of a completion sum to 0, all its tokens count alike.
    """
    total = masked_sum(token_weights, tokens.response_mask).unsqueeze(-1)
    counts = torch.ones_like(token_weights) if tokens.mean_weights is None else tokens.mean_weights
    even = counts / divisor(tokens.lengths).to(counts.dtype).unsqueeze(-1)
    return torch.where(total == 0, even, token_weights / torch.where(total == 0, 1, total))
