"""Rules that choose the exponent of a power mean, one per completion."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.arguments import require_finite, require_non_negative
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.masked import divisor, masked_length, masked_max, masked_mean
from aggregate_po.token_ratios import TokenRatios


class ExponentRule(ABC):
    """Chooses the exponent of a power mean for each completion; no gradient flows through the exponent.

    Subclass requirements:

    - Implement `__call__`. It must return one finite exponent per completion, detached from the graph and in the
      precision of the log ratios. Padding, the order of tokens and other completions must have no effect.
    - Override `takes_mean_weights` to return True if the rule reads no token, or reduces with `tokens.mean_weights`.
    - Read what is known of the whole optimizer step from `tokens.totals`; `totals.required` names a missing field.

    `aggregate_po.testing.check_exponent_rule` checks these requirements.
    """

    @property
    def takes_mean_weights(self) -> bool:
        """Whether the rule is right for tokens with `mean_weights`; a power mean refuses weights otherwise."""
        return False

    @abstractmethod
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        """Return a finite, detached exponent for each completion; shape `batch`."""


@dataclass(frozen=True)
class FixedExponent(ExponentRule):
    """Constant exponent; `PowerMean(0.5)` is short for `PowerMean(FixedExponent(0.5))`.

    Args:
        value: Exponent of every completion.
    """

    value: float

    def __post_init__(self) -> None:
        require_finite(value=self.value)

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        return tokens.log_ratio.new_full(tokens.lengths.shape, self.value)


@dataclass(frozen=True)
class LinearExponent(ExponentRule):
    """Linear schedule of the exponent over training, by `totals.progress` (0 at the start, 1 at the end).

    Args:
        start: Exponent at the start of training.
        end: Exponent at the end of the schedule, and from then on.
        duration: Fraction of training that the schedule takes, above 0 and at most 1.

    Raises:
        ValueError: an exponent is not finite, the duration is not in (0, 1], or the totals lack the progress.

    Example:
        >>> from aggregate_po import StepTotals
        >>> halfway = TokenRatios.of(torch.zeros(1, 3), totals=StepTotals(1, 3, progress=0.5))
        >>> LinearExponent(2.0, -2.0)(halfway), LinearExponent(2.0, -2.0, duration=0.5)(halfway)
        (tensor([0.]), tensor([-2.]))

    Reference: HölderPO, arXiv:2605.12058, from 2 to -2. In its code the schedule takes 500 steps, rollouts or optimizer
    steps, and is constant afterwards.
    """

    start: float = 2.0
    end: float = -2.0
    duration: float = 1.0

    def __post_init__(self) -> None:
        require_finite(start=self.start, end=self.end, duration=self.duration)
        if not 0 < self.duration <= 1:
            raise ValueError(f"`duration` is {self.duration}; pass a fraction of training, above 0 and at most 1.")

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        progress = float(tokens.totals.required("progress", self))
        value = self.start + (self.end - self.start) * min(progress / self.duration, 1.0)
        return tokens.log_ratio.new_full(tokens.lengths.shape, value)


@dataclass(frozen=True)
class RewardExponent(ExponentRule):
    r"""Exponent that falls as the mean reward of the rollout rises, $p = e^{-\gamma \mu_R}$.

    For rewards in [0, 1] the exponent moves from the arithmetic mean at reward 0 toward the geometric mean, without
    reaching it: with the default $\gamma$, $p = 0.449$ at reward 1. Negative rewards raise it, to $e^{10}$ at most.

    Args:
        gamma: Rate $\gamma$ of the decay.

    Raises:
        ValueError: `gamma` is negative; when called, if the totals lack the mean reward.

    Reference: APMPO, arXiv:2605.04066.
    """

    gamma: float = 0.8

    def __post_init__(self) -> None:
        require_non_negative(gamma=self.gamma)

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        reward = float(tokens.totals.required("reward_mean", self))
        # Very negative rewards would overflow; at such exponents the mean already equals the largest ratio.
        exponent = math.exp(min(-self.gamma * reward, 10.0))
        return tokens.log_ratio.new_full(tokens.lengths.shape, exponent)


def interpolated_target(clipped_fraction: PerCompletion, arithmetic_ess: PerCompletion) -> PerCompletion:
    r"""Return the target effective sample size as a fraction of the length, $(1-f)\,\mathrm{ESS}(1)/n + f$ (eq. 18).

    Without clipping the target is that of the arithmetic mean; when every token is clipped, that of the geometric mean.
    The map is this library's reconstruction: the PMPO paper (arXiv:2601.22521) states these two ends, and its readable
    part gives no formula in between.

    Args:
        clipped_fraction: Fraction of tokens whose gradient the clip sets to zero; shape `batch`.
        arithmetic_ess: Effective sample size at `p = 1` as a fraction of the length; shape `batch`.
    """
    return (1 - clipped_fraction) * arithmetic_ess + clipped_fraction


@dataclass(frozen=True)
class ESSMatching(ExponentRule):
    r"""Exponent $p \in [0, 1]$ at which the effective sample size of the weights meets a target (eq. 17).

    $\mathrm{ESS}(p) = (\sum_t r_t^p)^2 / \sum_t r_t^{2p}$ falls from $n$ at $p = 0$ as $p$ grows, so bisection finds
    the unique solution, for all completions at once. The exponent is 1 if the target is below $\mathrm{ESS}(1)$ or if
    all ratios are equal, and 0 if the target is the full length.

    Args:
        target: Function that maps the clipped fraction and `ESS(1) / n`, both of shape `batch`, to the target
            `ESS / n`.

    Reference: PMPO, arXiv:2601.22521; the default target is a reconstruction, see `interpolated_target`.
    """

    target: Callable[[PerCompletion, PerCompletion], PerCompletion] = interpolated_target

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return True

    @override
    def __call__(self, tokens: TokenRatios) -> PerCompletion:
        mask, weights = tokens.response_mask, tokens.mean_weights
        curve = ESSCurve.of(tokens.uncorrected, mask, weights)
        arithmetic = curve.share(torch.ones_like(curve.lengths))
        target = self.target(masked_mean(tokens.saturated.double(), mask, weights), arithmetic)
        return curve.exponent(target, largest=1.0, share_at_largest=arithmetic).to(tokens.log_ratio.dtype)


@dataclass(frozen=True)
class ESSCurve:
    r"""Effective sample size of the power weights as a function of the exponent, as a fraction of the length (eq. 17).

    Defined for exponents above 0, where the curve falls from 1; computed for all completions at once, in float64.

    Args:
        log_ratio: Log ratios minus the largest of the completion, -inf on padding; shape `batch time`.
        lengths: Response tokens of each completion, or the sum of their weights; 1 for no token; shape `batch`.
        weights: Weights of the tokens, 0 on padding; None counts every token once; shape `batch time`.
    """

    log_ratio: PerToken
    lengths: PerCompletion
    weights: PerToken | None = None

    # Enough bisection steps to halve [0, 1] down to the resolution of float64 near 1.
    _bisections = 52

    @classmethod
    def of(cls, log_ratio: PerToken, response_mask: PerToken, weights: PerToken | None = None) -> "ESSCurve":
        """Return the curve of each completion; all arguments have shape `batch time`."""
        log_ratio = torch.where(response_mask, log_ratio.double(), -torch.inf)
        # Relative to the largest ratio, no exponential overflows, and padding contributes exp(-inf) = 0.
        log_ratio = log_ratio - masked_max(log_ratio, response_mask).unsqueeze(-1)
        lengths = divisor(masked_length(response_mask, weights)).double()
        return cls(log_ratio, lengths, None if weights is None else torch.where(response_mask, weights, 0).double())

    def share(self, exponent: PerCompletion) -> PerCompletion:
        """Return the effective sample size over the length at positive exponents, 0 for no token; shape `batch`."""
        # `p = 0` times -inf would be NaN, but bisection evaluates midpoints only.
        powers = torch.exp(self.log_ratio * exponent.unsqueeze(-1))
        squares = self._sum(powers.square()).clamp(min=torch.finfo(powers.dtype).tiny)
        return self._sum(powers).square() / squares / self.lengths

    def exponent(
        self, target: PerCompletion | float, largest: float, share_at_largest: PerCompletion | None = None
    ) -> PerCompletion:
        """Return the exponent in `[0, largest]` with share `target`, or the nearer end; `largest` if ratios are equal.

        Args:
            target: Effective sample size over the length; a number or one per completion; shape `batch`.
            largest: Upper end of the interval, above 0.
            share_at_largest: Share at `largest`, if already known; shape `batch`.
        """
        ends = torch.full_like(self.lengths, largest)
        at_largest = self.share(ends) if share_at_largest is None else share_at_largest
        target = torch.as_tensor(target, dtype=self.lengths.dtype, device=self.lengths.device).expand_as(self.lengths)
        exponents = torch.where(target <= at_largest, ends, 0)
        inside = (target > at_largest) & (target < 1)
        if inside.any():
            weights = None if self.weights is None else self.weights[inside]
            undecided = ESSCurve(self.log_ratio[inside], self.lengths[inside], weights)
            exponents[inside] = undecided._bisect(target[inside], largest)
        return exponents

    def _sum(self, values: PerToken) -> PerCompletion:
        return (values if self.weights is None else self.weights * values).sum(dim=-1)

    def _bisect(self, target: PerCompletion, largest: float) -> PerCompletion:
        low, high = torch.zeros_like(self.lengths), torch.full_like(self.lengths, largest)
        for _ in range(self._bisections):
            middle = (low + high) / 2
            too_even = self.share(middle) > target
            low, high = torch.where(too_even, middle, low), torch.where(too_even, high, middle)
        return (low + high) / 2
