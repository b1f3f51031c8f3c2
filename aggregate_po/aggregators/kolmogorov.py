"""Means defined by a generator."""

from abc import abstractmethod

from torch import Tensor

from aggregate_po.aggregators.base import Mean
from aggregate_po.batch import PerCompletion, TokenRatios
from aggregate_po.masked import masked_mean


class KolmogorovMean(Mean):
    r"""Quasi-arithmetic mean, $\log M = \varphi^{-1}(\frac1n \sum_t \varphi(\log r_t))$.

    The generator acts on log ratios and must be strictly monotone. Nothing here guards it against overflow: a power
    of the ratio is better said by `PowerMean`, which works in log space.

    Reference: Kolmogorov (1930), "Sur la notion de la moyenne".
    """

    @abstractmethod
    def generator(self, log_ratio: Tensor) -> Tensor:
        """Strictly monotone function of the log ratio, elementwise."""

    @abstractmethod
    def inverse(self, values: Tensor) -> Tensor:
        """Inverse of `generator`, elementwise."""

    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        """See `TokenAggregator.log_aggregate`."""
        return self.inverse(masked_mean(self.generator(tokens.log_ratio), tokens.response_mask))
