"""Clips whose bounds do not depend on the sign of the advantage as those of PPO do."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_numbers
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.clip import Clip


@dataclass(frozen=True)
class TwoSidedClip(Clip):
    """Clips the ratio to two bounds whatever the advantage.

    Args:
        min_ratio: Lower bound of the ratio; 0 means no lower bound.
        max_ratio: Upper bound of the ratio; `inf` means no upper bound.

    Raises:
        ValueError: the bounds are negative, NaN or in the wrong order.

    Reference: as a weight on the log-probability, CISPO, arXiv:2506.13585.
    """

    min_ratio: float = 0.0
    max_ratio: float = math.inf

    def __post_init__(self) -> None:
        require_numbers(min_ratio=self.min_ratio, max_ratio=self.max_ratio)
        if not (0 <= self.min_ratio <= self.max_ratio and self.min_ratio < math.inf and self.max_ratio > 0):
            raise ValueError(
                f"`min_ratio` is {self.min_ratio} and `max_ratio` {self.max_ratio}; pass two ratios in this order, "
                "0 or more, the second positive."
            )

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[float, float]:
        return (math.log(self.min_ratio) if self.min_ratio > 0 else -math.inf), math.log(self.max_ratio)


@dataclass(frozen=True)
class NegativeCap(Clip):
    """Clips the ratio from above where the advantage is negative, which bounds the loss of a single token.

    Use it in a `Chain` after a one-sided clip, which bounds the ratio from below only where the advantage is negative.

    Args:
        max_ratio: Upper bound of the ratio.

    Raises:
        ValueError: the bound is not greater than 1.

    Reference: "dual clip", Ye et al., arXiv:1912.09729.
    """

    max_ratio: float = 3.0

    def __post_init__(self) -> None:
        require_numbers(max_ratio=self.max_ratio)
        if not 1 < self.max_ratio < math.inf:
            raise ValueError(f"`max_ratio` is {self.max_ratio}; pass a ratio above 1, and a finite one.")

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[float, Tensor]:
        bound = ratios.log_ratio.new_tensor(math.log(self.max_ratio))
        return -math.inf, torch.where(ratios.advantages < 0, bound, torch.inf)
