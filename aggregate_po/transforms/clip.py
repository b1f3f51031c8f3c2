"""Clips that only ever bound the objective from above, so they stop a step that has gone far enough."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.transforms.base import RatioTransform


class OneSidedClip(RatioTransform):
    """Bounds the log ratio from above where the advantage is positive, from below where it is negative (eq. 10).

    Where the advantage is zero nothing is clipped: the gradient is zero without it.
    """

    @abstractmethod
    def log_bounds(self, ratios: TokenRatios) -> tuple[float | Tensor, float | Tensor]:
        """Lower and upper bound of the log ratio; numbers, or tensors that broadcast against it."""

    def __call__(self, ratios: TokenRatios) -> Tensor:
        """See `RatioTransform`."""
        lower, upper = self.log_bounds(ratios)
        log_ratio, advantages = ratios.log_ratio, ratios.advantages
        from_below = torch.where(advantages < 0, log_ratio.clamp(min=lower), log_ratio)
        return torch.where(advantages > 0, log_ratio.clamp(max=upper), from_below)

    def derivative(self, ratios: TokenRatios) -> Tensor:
        """One where the log ratio stands, zero where it is clipped."""
        return (~self.saturated(ratios)).to(ratios.log_ratio.dtype)

    def saturated(self, ratios: TokenRatios) -> Tensor:
        """True where the clip replaced the log ratio."""
        lower, upper = self.log_bounds(ratios)
        log_ratio, advantages = ratios.log_ratio, ratios.advantages
        return ((advantages > 0) & (log_ratio > upper)) | ((advantages < 0) & (log_ratio < lower))


@dataclass(frozen=True)
class PessimisticClip(OneSidedClip):
    """The clip of PPO, `min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, as a bound on the ratio.

    `PessimisticClip.log(0.4, 0.4)` states the bounds on the log ratio instead.

    Args:
        clip_low: the ratio is at least `1 - clip_low`; 1 or more means no lower bound.
        clip_high: the ratio is at most `1 + clip_high`; `inf` means no upper bound.

    Raises:
        ValueError: a bound is negative or NaN.

    Reference: Schulman et al., arXiv:1707.06347; asymmetric bounds: DAPO, arXiv:2503.14476.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        _require_non_negative(clip_low=self.clip_low, clip_high=self.clip_high)

    @staticmethod
    def log(log_clip_low: float = 0.4, log_clip_high: float = 0.4) -> LogPessimisticClip:
        """The same clip with its bounds on the log ratio, `[-log_clip_low, log_clip_high]`."""
        return LogPessimisticClip(log_clip_low, log_clip_high)

    def log_bounds(self, ratios: TokenRatios) -> tuple[float, float]:
        """See `OneSidedClip`."""
        return (math.log1p(-self.clip_low) if self.clip_low < 1 else -math.inf), math.log1p(self.clip_high)


@dataclass(frozen=True)
class LogPessimisticClip(OneSidedClip):
    """`PessimisticClip` with its bounds on the log ratio; `PessimisticClip.log` makes one.

    Args:
        log_clip_low: the log ratio is at least `-log_clip_low`.
        log_clip_high: the log ratio is at most `log_clip_high`.

    Raises:
        ValueError: a bound is negative or NaN.

    Reference: GMPO, arXiv:2507.20673.
    """

    log_clip_low: float = 0.4
    log_clip_high: float = 0.4

    def __post_init__(self) -> None:
        _require_non_negative(log_clip_low=self.log_clip_low, log_clip_high=self.log_clip_high)

    def log_bounds(self, ratios: TokenRatios) -> tuple[float, float]:
        """See `OneSidedClip`."""
        return -self.log_clip_low, self.log_clip_high


@dataclass(frozen=True)
class TrajectoryLogClip(OneSidedClip):
    """Clip of the *summed* log ratio, for use after a mean: the bounds shrink with the length, `bound / n`.

    Args:
        log_clip_low: the summed log ratio is at least `-log_clip_low`.
        log_clip_high: the summed log ratio is at most `log_clip_high`.

    Raises:
        ValueError: a bound is negative or NaN.

    Reference: the sequence-clip ablation of GMPO, arXiv:2507.20673.
    """

    log_clip_low: float = 0.4
    log_clip_high: float = 0.4

    def __post_init__(self) -> None:
        _require_non_negative(log_clip_low=self.log_clip_low, log_clip_high=self.log_clip_high)

    def log_bounds(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        """See `OneSidedClip`."""
        if ratios.log_ratio.ndim != 1:
            raise ValueError(
                f"`log_ratio` has shape {tuple(ratios.log_ratio.shape)}, but TrajectoryLogClip bounds completions; "
                "pass it as `sequence_transform`, to act after the mean."
            )
        lengths = ratios.lengths.clamp(min=1).to(ratios.log_ratio.dtype)
        return -self.log_clip_low / lengths, self.log_clip_high / lengths


def _require_non_negative(**bounds: float) -> None:
    for name, bound in bounds.items():
        if not bound >= 0:
            raise ValueError(f"`{name}` is {bound}; pass a distance from the bound to no change at all, 0 or more.")
