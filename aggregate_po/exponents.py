"""Rules that choose the exponent of a power mean, one per completion."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aggregate_po.batch import PerCompletion, PerToken, TokenRatios
from aggregate_po.masked import masked_max, masked_mean


class ExponentRule(ABC):
    """Chooses the order of the power mean; the choice is a constant to the gradient."""

    @abstractmethod
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        """Finite exponent of each completion; shape `batch`."""


@dataclass(frozen=True)
class FixedExponent(ExponentRule):
    """The same exponent always; what `PowerMean(0.5)` means."""

    value: float

    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        """See `ExponentRule`."""
        return tokens.log_ratio.new_full(tokens.lengths.shape, self.value)


@dataclass(frozen=True)
class LinearExponent(ExponentRule):
    """Moves the exponent in a straight line over the training, by `totals.progress` (0 at first, 1 at the end).

    Reference: HölderPO, arXiv:2605.12058, whose schedule runs from 2 to -2.
    """

    start: float = 2.0
    end: float = -2.0

    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        """See `ExponentRule`."""
        value = self.start + (self.end - self.start) * tokens.totals.progress
        return tokens.log_ratio.new_full(tokens.lengths.shape, value)


def interpolated_target(clipped_fraction: PerCompletion, arithmetic_ess: PerCompletion) -> PerCompletion:
    r"""Target effective sample size, as a share of the length: $(1-f)\,\mathrm{ESS}(1)/n + f$ (eq. 12).

    Without clipping it asks for the arithmetic mean; when every token is clipped, for the geometric one. The map is
    this library's reconstruction: the PMPO paper (arXiv:2601.22521) states these two ends, and what was readable of
    it gives no formula in between.

    Args:
        clipped_fraction: tokens whose gradient the clip zeroes, as a share of the length; shape `batch`.
        arithmetic_ess: effective sample size at `p = 1`, as a share of the length; shape `batch`.
    """
    return (1 - clipped_fraction) * arithmetic_ess + clipped_fraction


@dataclass(frozen=True)
class ESSMatching(ExponentRule):
    r"""The $p \in [0, 1]$ at which the effective sample size of the weights meets a target (eq. 11).

    $\mathrm{ESS}(p) = (\sum_t r_t^p)^2 / \sum_t r_t^{2p}$ falls from $n$ at $p = 0$ as $p$ grows, so bisection finds
    the one solution, for all completions at once. A target that $p = 1$ already exceeds, or ratios that are all equal,
    give 1; a target of the full length gives 0.

    Args:
        target: maps the clipped fraction and `ESS(1) / n`, both of shape `batch`, to the target `ESS / n`.

    Reference: PMPO, arXiv:2601.22521; the default target is a reconstruction, see `interpolated_target`.
    """

    target: Callable[[PerCompletion, PerCompletion], PerCompletion] = interpolated_target

    # Halves [0, 1] to the resolution of float64 near 1.
    _bisections = 52

    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        """See `ExponentRule`."""
        mask = tokens.response_mask
        log_ratio = torch.where(mask, tokens.log_ratio.detach().double(), -torch.inf)
        # Relative to the largest ratio no exponential overflows, and padding contributes exp(-inf) = 0.
        log_ratio = log_ratio - masked_max(log_ratio, mask).unsqueeze(-1)
        lengths = tokens.lengths.clamp(min=1).double()

        arithmetic = _ess_share(log_ratio, torch.ones_like(lengths), lengths)
        target = self.target(masked_mean(tokens.saturated.double(), mask), arithmetic)
        target = torch.as_tensor(target, device=lengths.device).expand_as(lengths)  # a plain number serves all alike
        exponents = (target <= arithmetic).double()
        inside = (target > arithmetic) & (target < 1)
        if inside.any():
            exponents[inside] = self._bisect(log_ratio[inside], lengths[inside], target[inside])
        return exponents.to(tokens.log_ratio.dtype)

    def _bisect(self, log_ratio: PerToken, lengths: PerCompletion, target: PerCompletion) -> PerCompletion:
        low, high = torch.zeros_like(lengths), torch.ones_like(lengths)
        for _ in range(self._bisections):
            middle = (low + high) / 2
            too_even = _ess_share(log_ratio, middle, lengths) > target
            low, high = torch.where(too_even, middle, low), torch.where(too_even, high, middle)
        return (low + high) / 2


def _ess_share(log_ratio: PerToken, exponent: PerCompletion, lengths: PerCompletion) -> PerCompletion:
    """Effective sample size of the power weights over the length; `log_ratio` is at most 0, -inf on padding."""
    # `p = 0` never meets -inf here: the bisection only ever asks for midpoints.
    powers = torch.exp(log_ratio * exponent.unsqueeze(-1))
    return powers.sum(dim=-1).square() / powers.square().sum(dim=-1).clamp(min=torch.finfo(powers.dtype).tiny) / lengths
