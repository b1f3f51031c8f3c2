"""A mean that is robust against single tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po import HomogeneousMean, TokenRatios, masked_softmax, masked_sum
from aggregate_po.masked import masked_max


@dataclass(frozen=True)
class PseudoHuberMean(HomogeneousMean):
    """The m of least `sum sqrt(1 + s^2)`, `s = (x - m) / width`; a token weighs as `(1 + s^2)^-1.5`."""

    width: float = 1.0

    def log_aggregate(self, tokens: TokenRatios) -> Tensor:
        x, mask = tokens.log_ratio.double(), tokens.response_mask
        low, high = -masked_max(-x.detach(), mask), masked_max(x.detach(), mask)
        for _ in range(50):
            s = (x.detach() - ((low + high) / 2).unsqueeze(-1)) / self.width
            rises = masked_sum(s * (1 + s * s).rsqrt(), mask) > 0
            low, high = torch.where(rises, (low + high) / 2, low), torch.where(rises, high, (low + high) / 2)
        weights = masked_softmax(-1.5 * torch.log1p(s * s), mask)
        return (low + masked_sum(weights * (x - x.detach()), mask)).to(tokens.log_ratio.dtype)
