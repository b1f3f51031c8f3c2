"""Product of the token ratios, which is the ratio of the whole completion, and its roots."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.arguments import require_numbers
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.masked import divisor, masked_sum
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class Product(TokenAggregator):
    """Product of the token ratios (eq. 9).

    The product is not a mean: every token has weight one, so the weights of a completion sum to its length. With
    `mean_weights` each ratio has its weight as the exponent.
    """

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        return masked_sum(tokens.log_ratio, tokens.response_mask, tokens.mean_weights)

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return one, or its weight, on every response token; shape `batch time`."""
        weights = torch.ones_like(tokens.log_ratio) if tokens.mean_weights is None else tokens.mean_weights
        return torch.where(tokens.response_mask, weights, 0).to(tokens.log_ratio.dtype)


@dataclass(frozen=True)
class LengthScaledProduct(TokenAggregator):
    r"""Product of the token ratios to a power of the length, $\prod_t r_t^{n^{-\alpha}}$ (eq. 50).

    At `length_exponent` 0 this is `Product`, and at 1 `GeometricMean`. The weights of a completion sum to
    $n^{1 - \alpha}$. For independent log ratios, the logarithm has a standard deviation in proportion to
    $n^{1/2 - \alpha}$, which at 1/2 is the same for all lengths.

    Args:
        length_exponent: Power $\alpha$ of the length by which the sum of the log ratios is divided, from 0 to 1.

    Raises:
        ValueError: the exponent is not between 0 and 1.

    Example:
        >>> tokens = TokenRatios.of(torch.tensor([[0.6, -0.5, 0.2, 0.1]]))
        >>> LengthScaledProduct(0.5).log_aggregate(tokens)  # 0.4 over the square root of 4
        tensor([0.2000])

    Reference: P-GSPO, a withdrawn submission to ICLR 2026 (OpenReview OeYb0K8gEu).
    """

    length_exponent: float

    def __post_init__(self) -> None:
        require_numbers(length_exponent=self.length_exponent)
        if not 0 <= self.length_exponent <= 1:
            raise ValueError(
                f"`length_exponent` is {self.length_exponent}; pass a number from 0, the product, to 1, the geometric "
                "mean."
            )

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        return self._share(tokens) * masked_sum(tokens.log_ratio, tokens.response_mask, tokens.mean_weights)

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        r"""Return $n^{-\alpha}$, times its weight, on every response token; shape `batch time`."""
        return self._share(tokens).unsqueeze(-1) * Product().token_weights(tokens)

    def _share(self, tokens: TokenRatios) -> PerCompletion:
        return divisor(tokens.lengths).to(tokens.log_ratio.dtype) ** -self.length_exponent
