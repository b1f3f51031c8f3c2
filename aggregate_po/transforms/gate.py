"""Smooth gates: transforms that attenuate the gradient where a clip would zero it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_positive
from aggregate_po.bounds import MAX_LOG_RATIO
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import RatioTransform

# From here on the gate is constant to the last bit, in float64 too, and the exponential is far from overflow.
_MAX_EXCESS = 1e3

# A kernel below e^-80 is no longer told from zero, and a mean of its logarithms would lose all digits further down.
_MIN_LOG_KERNEL = -80.0


@dataclass(frozen=True)
class SigmoidGate(RatioTransform):
    r"""Maps a ratio to $f(r) = \frac4\tau \sigma(\tau (r - 1))$, whose slope decays on both sides of 1 (eq. 13).

    Since $f'(1) = 1$, the gradient on policy is that of the ratio itself. Since $f(1) = 2 / \tau$, the value is about
    twice that of other objectives.

    Args:
        tau_positive: Sharpness $\tau$ where the advantage is positive.
        tau_negative: Sharpness $\tau$ where the advantage is not positive.

    Raises:
        ValueError: a sharpness is not positive.

    Reference: SAPO, arXiv:2511.20347.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        require_positive(tau_positive=self.tau_positive, tau_negative=self.tau_negative)

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        tau = self._tau(ratios)
        # Not expm1, whose derivative by autograd loses all digits where the ratio is small.
        return math.log(4) - tau.log() + torch.nn.functional.logsigmoid(tau * (_ratio_before_the_end(ratios, tau) - 1))

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        r"""Return $\tau r \, \sigma(-\tau (r - 1))$."""
        tau = self._tau(ratios)
        ratio = _ratio_before_the_end(ratios, tau)
        # Not sigmoid, which underflows earlier than the product with the ratio.
        return tau * ratio * torch.nn.functional.logsigmoid(tau * (1 - ratio)).exp()

    def _tau(self, ratios: TokenRatios) -> Tensor:
        return _chosen(ratios.advantages > 0, self.tau_positive, self.tau_negative, ratios)


@dataclass(frozen=True)
class ArctanGate(RatioTransform):
    r"""Maps a log ratio $x$ to $\arctan(\tau x) / \tau$, whose slope decays on both sides of 0 (eq. 47).

    The gate is 1 on policy, and lies between $e^{-\pi / 2 \tau}$ and $e^{\pi / 2 \tau}$.

    Args:
        tau: Sharpness $\tau$; the slope is one half at a log ratio of $\pm 1 / \tau$.

    Raises:
        ValueError: the sharpness is not positive.

    Example:
        >>> ArctanGate(5.0)(TokenRatios.of(torch.tensor([[0.2]])))  # the arctangent of 1, over 5
        tensor([[0.1571]])

    Reference: SSPO, arXiv:2602.19327. The paper names an arctangent; this form of the gate is a reconstruction.
    """

    tau: float

    def __post_init__(self) -> None:
        require_positive(tau=self.tau)

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return torch.atan(self.tau * ratios.log_ratio) / self.tau

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        r"""Return $1 / (1 + \tau^2 x^2)$."""
        return 1 / (1 + (self.tau * ratios.log_ratio).square())


@dataclass(frozen=True)
class GammaKernel(RatioTransform):
    r"""Maps a ratio to $\varphi(w) = w^k e^{\lambda (1 - w)}$, which is 1 at 1 and has its peak at $k / \lambda$.

    The kernel decays on both sides. It is taken as constant where it is below $e^{-80}$, and beyond log ratios of +-20.

    Args:
        shape_positive: Exponent $k$ of the kernel where the advantage is not negative.
        rate_positive: Rate $\lambda$ of the kernel where the advantage is not negative.
        shape_negative: Exponent $k$ of the kernel where the advantage is negative.
        rate_negative: Rate $\lambda$ of the kernel where the advantage is negative.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> ratios = TokenRatios.of(torch.tensor([[0.4]]))
        >>> GammaKernel()(ratios).exp()  # of the ratio 1.4918
        tensor([[0.5089]])

    Reference: VESPO, arXiv:2602.10693, with the defaults of its code.
    """

    shape_positive: float = 2.0
    rate_positive: float = 3.0
    shape_negative: float = 3.0
    rate_negative: float = 2.0

    def __post_init__(self) -> None:
        require_positive(**vars(self))

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return self._log_kernel(ratios).clamp(min=_MIN_LOG_KERNEL)

    @override
    def derivative(self, ratios: TokenRatios) -> Tensor:
        r"""Return $k - \lambda w$, and 0 where the kernel is constant."""
        shape, rate = self._parameters(ratios)
        log_ratio = ratios.log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        varies = (log_ratio == ratios.log_ratio) & (self._log_kernel(ratios) >= _MIN_LOG_KERNEL)
        return torch.where(varies, shape - rate * log_ratio.exp(), 0)

    def _log_kernel(self, ratios: TokenRatios) -> Tensor:
        shape, rate = self._parameters(ratios)
        log_ratio = ratios.log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return shape * log_ratio + rate * (1 - log_ratio.exp())

    def _parameters(self, ratios: TokenRatios) -> tuple[Tensor, Tensor]:
        negative = ratios.advantages < 0
        shape = _chosen(negative, self.shape_negative, self.shape_positive, ratios)
        return shape, _chosen(negative, self.rate_negative, self.rate_positive, ratios)


def _ratio_before_the_end(ratios: TokenRatios, tau: Tensor) -> Tensor:
    """Return the ratio, at most the one at which the gate has ended; the product of a completion would overflow."""
    return torch.minimum(ratios.log_ratio, torch.log1p(_MAX_EXCESS / tau)).exp()


def _chosen(condition: Tensor, one: float, other: float, ratios: TokenRatios) -> Tensor:
    """Select one of two numbers in the precision of the log ratios; `where` on Python numbers gives float32."""
    return torch.where(condition, ratios.log_ratio.new_tensor(one), ratios.log_ratio.new_tensor(other))
