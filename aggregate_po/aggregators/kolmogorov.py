"""Quasi-arithmetic means, defined by a generator."""

from abc import abstractmethod

from torch import Tensor
from typing_extensions import override

from aggregate_po.aggregators.base import Mean
from aggregate_po.batch import PerCompletion
from aggregate_po.masked import masked_mean
from aggregate_po.token_ratios import TokenRatios


class KolmogorovMean(Mean):
    r"""Quasi-arithmetic mean, $\log M = \varphi^{-1}(\frac1n \sum_t \varphi(\log r_t))$, or weighted.

    A subclass implements `generator`, a strictly monotone function of the log ratio, and its `inverse`. There is no
    guard against overflow; for powers of the ratio use `PowerMean`, which works in log space.

    Reference: Kolmogorov (1930), "Sur la notion de la moyenne".
    """

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @abstractmethod
    def generator(self, log_ratio: Tensor) -> Tensor:
        """Map log ratios elementwise by a strictly monotone function."""

    @abstractmethod
    def inverse(self, values: Tensor) -> Tensor:
        """Invert `generator`, elementwise."""

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        values = self.generator(tokens.log_ratio)
        return self.inverse(masked_mean(values, tokens.response_mask, tokens.mean_weights))
