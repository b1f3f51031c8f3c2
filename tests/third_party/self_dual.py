"""A mean that treats a ratio and its inverse alike."""

from dataclasses import dataclass

from torch import Tensor

from aggregate_po import HomogeneousMean, TokenRatios, masked_logsumexp


@dataclass(frozen=True)
class SelfDualMean(HomogeneousMean):
    """Geometric mean of M_p and M_-p, so M(1 / r) = 1 / M(r); tokens that moved far either way weigh the most."""

    order: float = 1.0

    def log_aggregate(self, tokens: TokenRatios) -> Tensor:
        scaled, mask = self.order * tokens.log_ratio, tokens.response_mask
        return (masked_logsumexp(scaled, mask) - masked_logsumexp(-scaled, mask)) / (2 * self.order)
