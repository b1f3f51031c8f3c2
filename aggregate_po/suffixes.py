"""Suffix weights: factors of each token's advantage, from the log ratios of the tokens that follow it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from typing_extensions import override

from aggregate_po.arguments import require_non_negative, require_numbers, require_positive
from aggregate_po.batch import PerToken
from aggregate_po.scans import linear_recurrence
from aggregate_po.shapes import require_shape
from aggregate_po.token_ratios import TokenRatios


class SuffixWeight(ABC):
    """Multiplies the advantage of each token by a number computed from the token and those that follow it.

    The number is a constant to the gradient. Each token then has an advantage of its own (eq. 19), so no part of the
    objective may act on completions.

    Subclass requirements:

    - Implement `weights`. A weight must be finite and not negative for log ratios within +-80, and depend on nothing
      before its token. No gradient is needed.
    - Masked tokens, such as tool output in the middle of a completion, must have no effect.
    - Override `takes_mean_weights` to return True if there is a definition for tokens that count by weights, and read
      `tokens.mean_weights`.
    - Leave `__call__` as it is. It fills masked tokens with zero and calls `weights` outside any graph.

    `aggregate_po.testing.check_suffix_weight` checks these requirements.
    """

    @property
    def takes_mean_weights(self) -> bool:
        """Whether the weights read `tokens.mean_weights`; an objective refuses those otherwise."""
        return False

    @abstractmethod
    def weights(self, tokens: TokenRatios) -> PerToken:
        """Return the factor of each token's advantage, arbitrary on masked tokens; shape `batch time`.

        Args:
            tokens: Context before any other part; `log_ratio` is detached and 0 on masked tokens.
        """

    def __call__(self, tokens: TokenRatios) -> PerToken:
        """Return the factors, 1 on masked tokens.

        Raises:
            ValueError: `weights` returned another shape.
        """
        mask = tokens.response_mask
        with torch.no_grad():
            factors = self.weights(replace(tokens, log_ratio=torch.where(mask, tokens.log_ratio.detach(), 0)))
        require_shape(self, "weights", factors, "`batch time`", mask.shape)
        return torch.where(mask, factors, 1)


@dataclass(frozen=True)
class DiscountedFuture(SuffixWeight):
    r"""Product of the ratios from each token on, discounted and clipped, $e^{\sum_{k \ge t} \gamma^{k-t} x_k}$.

    A token counts more where the policy has since made its continuation more likely.

    Args:
        half_life: Number of tokens after which a log ratio counts half, $\gamma = 2^{-1 / \mathrm{half\_life}}$.
        min_weight: Lower bound of the weights.
        max_weight: Upper bound of the weights.
        max_ratio: Tokens with a ratio above this are left out of the sums; `inf` leaves none out.
        cap_from: Where the advantage is negative and the ratio is above this, the weight is clipped to [0.8, 1]; `inf`
            clips none.

    Raises:
        ValueError: a number is out of its range, or the bounds are in the wrong order.

    Example:
        >>> DiscountedFuture(half_life=1.0, max_weight=9.0)(TokenRatios.of(torch.tensor([[0.5, -0.5, 0.5]]))).log()
        tensor([[0.3750, 0.0000, 0.5000]])

    Reference: FIPO, arXiv:2603.19835, with the numbers of its implementation in ms-swift.
    """

    half_life: float = 32.0
    min_weight: float = 1.0
    max_weight: float = 1.2
    max_ratio: float = math.inf
    cap_from: float = 4.0

    _capped = (0.8, 1.0)

    def __post_init__(self) -> None:
        require_positive(half_life=self.half_life, max_weight=self.max_weight)
        require_non_negative(min_weight=self.min_weight)
        require_numbers(max_ratio=self.max_ratio, cap_from=self.cap_from)
        for name in ("max_ratio", "cap_from"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; pass a positive ratio, or `inf`.")
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"`min_weight` is {self.min_weight} and `max_weight` {self.max_weight}; pass them in this order."
            )

    @override
    def weights(self, tokens: TokenRatios) -> PerToken:
        log_ratio, mask = tokens.log_ratio, tokens.response_mask
        decay = torch.where(mask, 2 ** (-1 / self.half_life), 1.0).to(log_ratio.dtype)
        counted = torch.where(log_ratio > math.log(self.max_ratio), 0, log_ratio)
        future = linear_recurrence(decay.flip(-1), counted.flip(-1)).flip(-1)
        weights = future.exp().clamp(self.min_weight, self.max_weight)  # which bounds an overflow, too
        capped = (tokens.advantages < 0) & (log_ratio > math.log(self.cap_from))
        return torch.where(capped, weights.clamp(*self._capped), weights)
