"""A quotient of power sums."""

from dataclasses import dataclass

from torch import Tensor

from aggregate_po import HomogeneousMean, TokenRatios, masked_logsumexp


@dataclass(frozen=True)
class LehmerMean(HomogeneousMean):
    """Ratio of consecutive power sums, `sum r^p / sum r^(p-1)`; for p outside [0, 1] some weights are negative."""

    order: float = 2.0

    def log_aggregate(self, tokens: TokenRatios) -> Tensor:
        x, mask = tokens.log_ratio, tokens.response_mask
        return masked_logsumexp(self.order * x, mask) - masked_logsumexp((self.order - 1) * x, mask)
