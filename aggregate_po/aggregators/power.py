"""Power means: arithmetic, geometric, and every other real exponent."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.aggregators.base import EvaluatedAggregator, HomogeneousMean
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.exponents import ExponentRule
from aggregate_po.masked import divisor, masked_length, masked_logsumexp, masked_max, masked_mean, masked_softmax
from aggregate_po.token_ratios import TokenRatios

_LARGEST_EXPONENT = 1e6  # times a log ratio, still far from overflow in single precision


def log_power_mean(
    log_values: PerToken, mask: PerToken, exponent: PerCompletion, weights: PerToken | None = None
) -> PerCompletion:
    r"""Return $\log M_p = \frac1p \log \frac1n \sum_t e^{p x_t}$, which is smooth in $p$; at 0, the mean of $x$.

    Args:
        log_values: Logarithms $x$ of the values; shape `batch time`.
        mask: True on the values to average; shape `batch time`.
        exponent: Order $p$ of each row, finite; shape `batch`.
        weights: Weights $w$ of the values, $M_p = (\sum_t w_t e^{p x_t} / \sum_t w_t)^{1/p}$; equal when None; shape
            `batch time`.

    Returns:
        Log mean of each row, 0 where the mask is empty; shape `batch`.
    """
    mean = masked_mean(log_values, mask, weights)
    deviations = torch.where(mask, log_values - mean.unsqueeze(-1), 0)
    scaled = exponent.unsqueeze(-1) * deviations
    spread = masked_max(scaled.abs(), mask)
    smallest = torch.finfo(log_values.dtype).tiny / torch.finfo(log_values.dtype).eps
    # Here the correction to the mean is below rounding, but dividing by p would not be.
    vanishing = spread <= smallest
    order = torch.where(vanishing, 1.0, exponent)
    # log1p(mean(expm1(p d))) keeps precision as p -> 0, where log(mean(exp)) / p is 0/0; beyond |p d| = 1 expm1
    # would overflow, and logsumexp does not. Rows that a branch does not serve get harmless inputs in it.
    near_zero = spread < 1
    small = torch.where(near_zero.unsqueeze(-1), scaled, 0)
    near = torch.log1p(masked_mean(torch.expm1(small), mask, weights))
    lengths = divisor(masked_length(mask, weights)).to(log_values.dtype)
    far = masked_logsumexp(scaled, mask, weights) - lengths.log()
    correction = torch.where(near_zero, near, far) / order
    return mean + torch.where(vanishing, 0.0, correction)


@dataclass(frozen=True)
class ArithmeticMean(HomogeneousMean):
    """Arithmetic mean of the token ratios (eq. 6): the weight of a token is proportional to its ratio."""

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        lengths = divisor(tokens.lengths).to(tokens.log_ratio.dtype)
        log_sum = masked_logsumexp(tokens.log_ratio, tokens.response_mask, tokens.mean_weights)
        return torch.where(tokens.lengths > 0, log_sum - lengths.log(), 0)

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return the softmax of the log ratios, each ratio times its weight; shape `batch time`."""
        return masked_softmax(tokens.log_ratio, tokens.response_mask, tokens.mean_weights)


@dataclass(frozen=True)
class GeometricMean(HomogeneousMean):
    """Geometric mean of the token ratios (eq. 7): all tokens have the same weight."""

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        return masked_mean(tokens.log_ratio, tokens.response_mask, tokens.mean_weights)

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return one, or its weight, over the length on every response token; shape `batch time`."""
        return masked_softmax(torch.zeros_like(tokens.log_ratio), tokens.response_mask, tokens.mean_weights)


@dataclass(frozen=True)
class PowerMean(HomogeneousMean):
    r"""Power (Hölder) mean of the token ratios (eq. 8), $M_p = (\frac1n \sum_t r_t^p)^{1/p}$.

    `p = 1` is the arithmetic mean, 0 the geometric mean and -1 the harmonic mean; a large `|p|` approaches the extreme
    ratio.

    Args:
        exponent: Order `p`, at most a million in absolute value, or an `ExponentRule` that chooses one per completion.

    Raises:
        ValueError: the exponent is NaN or larger than a million in absolute value.
        TypeError: the exponent is neither a number nor a rule.
    """

    exponent: float | ExponentRule

    def __post_init__(self) -> None:
        if isinstance(self.exponent, ExponentRule):
            return
        if isinstance(self.exponent, bool) or not isinstance(self.exponent, (int, float)):
            raise TypeError(
                f"`exponent` is {self.exponent!r}; pass a real number or a rule from aggregate_po.exponents."
            )
        if not abs(self.exponent) <= _LARGEST_EXPONENT:
            raise ValueError(
                f"`exponent` is {self.exponent}; pass a number within +-{_LARGEST_EXPONENT:g}, where the mean has long "
                "become the extreme token."
            )

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return self.exponent.takes_mean_weights if isinstance(self.exponent, ExponentRule) else True

    def exponents(self, tokens: TokenRatios) -> PerCompletion:
        """Return the detached exponent of each completion; shape `batch`."""
        if isinstance(self.exponent, ExponentRule):
            with torch.no_grad():
                return self.exponent(tokens).to(tokens.log_ratio.dtype)
        return tokens.log_ratio.new_full(tokens.lengths.shape, self.exponent)

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        return _log_power_mean(tokens, self.exponents(tokens))

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return the softmax of `p` times the log ratios, each power times its weight; shape `batch time`."""
        return _softmax_of_powers(tokens, self.exponents(tokens))

    @override
    def evaluate(self, tokens: TokenRatios) -> EvaluatedAggregator:
        """Return value and weights together, with one call of the exponent rule."""
        exponents = self.exponents(tokens)
        log_aggregate = _log_power_mean(tokens, exponents)
        with torch.no_grad():
            chosen = exponents if isinstance(self.exponent, ExponentRule) else None
            return EvaluatedAggregator(log_aggregate, _softmax_of_powers(tokens, exponents), chosen)


def _log_power_mean(tokens: TokenRatios, exponents: PerCompletion) -> PerCompletion:
    return log_power_mean(tokens.log_ratio, tokens.response_mask, exponents, tokens.mean_weights)


def _softmax_of_powers(tokens: TokenRatios, exponents: PerCompletion) -> PerToken:
    return masked_softmax(exponents.unsqueeze(-1) * tokens.log_ratio, tokens.response_mask, tokens.mean_weights)
