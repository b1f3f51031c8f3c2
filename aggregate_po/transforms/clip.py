"""Clips: bounds on the ratio of a token or of a completion."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_non_negative, require_numbers
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import EvaluatedTransform, JointTransform

_REMEDY = "pass a distance from the bound to no change at all, 0 or more"

# A million tokens to this power is still far from overflow in single precision.
_LARGEST_POWER = 4.0


class Clip(JointTransform):
    """Clamps the log ratio to two bounds; a clipped log ratio has no gradient.

    A subclass implements `log_bounds`.
    """

    @abstractmethod
    def log_bounds(self, ratios: TokenRatios) -> tuple[float | Tensor, float | Tensor]:
        """Return the lower and the upper bound of the log ratio; numbers, or tensors that broadcast against it."""

    @override
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the clamped log ratios, with derivative one where unclipped and zero where clipped."""
        lower, upper = self._tensors(ratios)
        log_ratio = ratios.log_ratio
        above, below = log_ratio > upper, log_ratio < lower
        # Not `maximum`, which passes half of the gradient to a log ratio exactly on its bound.
        value = torch.where(above, upper, torch.where(below, lower, log_ratio))
        clipped = above | below
        return EvaluatedTransform(value, (~clipped).to(log_ratio.dtype), clipped)

    def _tensors(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        """Return the bounds as tensors in the precision of the log ratio."""
        lower, upper = self.log_bounds(ratios)
        dtype, device = ratios.log_ratio.dtype, ratios.log_ratio.device
        return torch.as_tensor(lower, dtype=dtype, device=device), torch.as_tensor(upper, dtype=dtype, device=device)


class OneSidedClip(Clip):
    """Clips the log ratio from above where the advantage is positive, from below where it is negative (eq. 10).

    Where the advantage is zero the gradient is zero anyway, so nothing is clipped.
    """

    @override
    def _tensors(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        """Return the bound for the sign of the advantage, and an infinite other bound."""
        lower, upper = super()._tensors(ratios)
        lower = torch.where(ratios.advantages < 0, lower, -torch.inf)
        return lower, torch.where(ratios.advantages > 0, upper, torch.inf)


@dataclass(frozen=True)
class PessimisticClip(OneSidedClip):
    """The clip of PPO, `min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, as a bound on the ratio.

    `PessimisticClip.log(0.4, 0.4)` sets bounds on the log ratio instead.

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative; 1 or more means no lower bound.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive; `inf` means no upper bound.

    Raises:
        ValueError: a bound is negative or NaN.

    Reference: Schulman et al., arXiv:1707.06347; asymmetric bounds: DAPO, arXiv:2503.14476.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        require_non_negative(_REMEDY, clip_low=self.clip_low)
        if self.clip_high != math.inf:
            require_non_negative(_REMEDY, clip_high=self.clip_high)

    @staticmethod
    def log(log_clip_low: float = 0.4, log_clip_high: float = 0.4) -> LogPessimisticClip:
        """Return the clip with bounds on the log ratio, `[-log_clip_low, log_clip_high]`."""
        return LogPessimisticClip(log_clip_low, log_clip_high)

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[float, float]:
        return _log_lower(self.clip_low), math.log1p(self.clip_high)


@dataclass(frozen=True)
class LogPessimisticClip(OneSidedClip):
    """`PessimisticClip` with bounds on the log ratio; `PessimisticClip.log` returns one.

    Args:
        log_clip_low: Log ratios are clipped at `-log_clip_low` where the advantage is negative.
        log_clip_high: Log ratios are clipped at `log_clip_high` where the advantage is positive.

    Raises:
        ValueError: a bound is negative or not finite.

    Reference: GMPO, arXiv:2507.20673.
    """

    log_clip_low: float = 0.4
    log_clip_high: float = 0.4

    def __post_init__(self) -> None:
        require_non_negative(_REMEDY, log_clip_low=self.log_clip_low, log_clip_high=self.log_clip_high)

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[float, float]:
        return -self.log_clip_low, self.log_clip_high


@dataclass(frozen=True)
class ScaledClip(Clip):
    r"""Another clip whose log bounds grow or shrink with the number of tokens in the ratio.

    Both bounds are multiplied by $n^q$. After the mean, $n$ is the length of the completion. Before it, $n$ is the
    position of the token among the response tokens, which is the number of log ratios in a prefix aggregate. Tokens
    that count by weights have no position, so an objective refuses such weights for the clip before the mean.

    Args:
        clip: Clip that gives the bounds at $n = 1$.
        exponent: Power $q$ of the number of tokens: 0.5 follows the standard deviation of a sum of $n$ log ratios, -0.5
            that of their mean, and -1 after a mean bounds the sum.

    Raises:
        TypeError: `clip` is not a `Clip`.
        ValueError: the exponent is not within +-4.

    Example:
        >>> clip = ScaledClip(PessimisticClip.log(0.4, 0.4), exponent=-1)
        >>> mean = TokenRatios.of(torch.zeros(1, 4), advantages=torch.ones(1)).after_mean(torch.tensor([0.5]))
        >>> clip(mean)
        tensor([0.1000])

    Reference: the sum's bounds after a mean, GMPO, arXiv:2507.20673; the square root of the length, FSPO,
    arXiv:2509.09177; that of the position, CTPO, arXiv:2605.07331.
    """

    clip: Clip
    exponent: float

    def __post_init__(self) -> None:
        if not isinstance(self.clip, Clip):
            raise TypeError(f"`clip` is {self.clip!r}; pass a subclass of Clip, such as PessimisticClip.log(0.4, 0.4).")
        require_numbers(exponent=self.exponent)
        if not abs(self.exponent) <= _LARGEST_POWER:
            raise ValueError(f"`exponent` is {self.exponent}; pass a number within +-{_LARGEST_POWER:g}.")

    @property
    @override
    def reads_positions(self) -> bool:
        return True

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        lower, upper = self.clip.log_bounds(ratios)
        scale = ratios.positions**self.exponent
        return lower * scale, upper * scale

    @override
    def _tensors(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        """Return the scaled bounds; those that the sign of the advantage makes infinite stay so."""
        lower, upper = self.clip._tensors(ratios)
        scale = ratios.positions**self.exponent
        return lower * scale, upper * scale


@dataclass(frozen=True)
class AdaptiveClip(OneSidedClip):
    r"""The clip of PPO with an upper bound that widens as rewards become high and steady.

    The ratio is at least `1 - clip_low`. The distance of the upper bound from 1 is interpolated between `clip_high_min`
    and `clip_high_max` by $\max(0, \tanh(\mu_R / \sigma_R))$, from mean and standard deviation of the rewards of the
    rollout.

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high_min: Distance of the upper bound from 1 at mean reward 0 or less.
        clip_high_max: Distance of the upper bound from 1 as $\mu_R / \sigma_R$ becomes large.

    Raises:
        ValueError: a bound is negative or not finite; when called, if the totals lack the rewards.

    Reference: APMPO, arXiv:2605.04066.
    """

    clip_low: float = 0.2
    clip_high_min: float = 0.2
    clip_high_max: float = 0.4

    # Equal rewards have no standard deviation to divide by.
    _smallest = 1e-8

    def __post_init__(self) -> None:
        require_non_negative(_REMEDY, **vars(self))

    @override
    def log_bounds(self, ratios: TokenRatios) -> tuple[float, Tensor]:
        mean = torch.as_tensor(ratios.totals.required("reward_mean", self), dtype=torch.float64)
        deviation = torch.as_tensor(ratios.totals.required("reward_std", self), dtype=torch.float64)
        stability = torch.tanh(mean / (deviation + self._smallest)).clamp(min=0)
        clip_high = self.clip_high_min + (self.clip_high_max - self.clip_high_min) * stability
        return _log_lower(self.clip_low), torch.log1p(clip_high)


def _log_lower(clip_low: float) -> float:
    return math.log1p(-clip_low) if clip_low < 1 else -math.inf
