"""Lehmer means: quotients of consecutive power sums."""

from dataclasses import dataclass

from typing_extensions import override

from aggregate_po.aggregators.base import HomogeneousMean
from aggregate_po.arguments import require_finite
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.masked import masked_logsumexp, masked_max, masked_softmax
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class LehmerMean(HomogeneousMean):
    r"""Lehmer mean of the token ratios, $L_p = \sum_t r_t^p / \sum_t r_t^{p-1}$.

    `p = 1` is the arithmetic mean and 0 the harmonic mean; at 1/2 the mean of two ratios is geometric. $L_p$ rises with
    `p` and is further from the arithmetic mean than the power mean of the same order.

    **Weights may be negative.** A token has the weight $p W_t(p) - (p - 1) W_t(p - 1)$, where $W(p)$ are the weights of
    the power mean. For `p > 1` it is negative where $r_t < L_p (p - 1) / p$, and for `p < 0` where $r_t$ is above that
    bound: such a token is pushed *against* the advantage of its completion. The weights still sum to one, so the others
    sum to more than one. For `p` in [0, 1] no weight is negative.

    Args:
        order: Order `p`, at most a million in absolute value.

    Raises:
        ValueError: the order is NaN or larger than a million in absolute value.

    Example:
        >>> import torch
        >>> tokens = TokenRatios.of(torch.tensor([[1.0, 3.0]]).log())
        >>> LehmerMean(2.0).log_aggregate(tokens).exp()  # (1 + 9) / (1 + 3)
        tensor([2.5000])
        >>> LehmerMean(2.0).token_weights(tokens)  # 2 (0.1, 0.9) - (0.25, 0.75)
        tensor([[-0.0500,  1.0500]])

    Reference: Lehmer (1971), "On the compounding of certain means"; no published objective uses it.
    """

    order: float

    _largest = 1e6  # times a log ratio, still far from overflow in single precision

    def __post_init__(self) -> None:
        require_finite(order=self.order)
        if abs(self.order) > self._largest:
            raise ValueError(f"`order` is {self.order}; pass a number within +-{self._largest:g}.")

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        # Relative to the extreme ratio that dominates both sums, they do not cancel.
        sign = 1.0 if self.order >= 0.5 else -1.0
        extreme = sign * masked_max(sign * tokens.log_ratio.detach(), tokens.response_mask)
        x, mask, weights = tokens.log_ratio - extreme.unsqueeze(-1), tokens.response_mask, tokens.mean_weights
        log_sums = [masked_logsumexp(order * x, mask, weights) for order in (self.order, self.order - 1)]
        return extreme + log_sums[0] - log_sums[1]

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return `p` times the softmax of `p x` less `p - 1` times that of `(p - 1) x`; shape `batch time`."""
        x, mask, weights, p = tokens.log_ratio, tokens.response_mask, tokens.mean_weights, self.order
        return p * masked_softmax(p * x, mask, weights) - (p - 1) * masked_softmax((p - 1) * x, mask, weights)
