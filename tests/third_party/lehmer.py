"""A quotient of power sums."""

from dataclasses import dataclass

from torch import Tensor

from aggregate_po import HomogeneousMean, TokenRatios, masked_logsumexp


@dataclass(frozen=True)
class LehmerMean(HomogeneousMean):
    """Ratio of consecutive power sums, `sum r^p / sum r^(p-1)`; for p outside [0, 1] some weights are negative."""

    order: float = 2.0
    takes_mean_weights = True

    def log_aggregate(self, tokens: TokenRatios) -> Tensor:
        x, mask, w = tokens.log_ratio, tokens.response_mask, tokens.mean_weights
        return masked_logsumexp(self.order * x, mask, w) - masked_logsumexp((self.order - 1) * x, mask, w)
