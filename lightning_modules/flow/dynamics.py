r"""Dynamics of sampling: the transition from one time to the next, given the velocity of a flow-matching model.

Time runs from 1 (noise) to 0 (sample) along the path $x_t = (1 - t) x_0 + t \epsilon$ with standard normal noise
$\epsilon$. The velocity is $v = dx/dt = \epsilon - x_0$, so a model that predicts $v$ also predicts the sample
$\hat x_0 = x - t v$ and the noise $\hat\epsilon = x + (1 - t) v$, and the score is $-\hat\epsilon / t$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po import PerCompletion
from aggregate_po.arguments import require_positive
from lightning_modules.flow.transition import Transition, per_latent


class StepCoefficients(NamedTuple):
    r"""Coefficients of a denoising step, $\mu = a x + b v$ with standard deviation $s$; each has shape `batch`.

    Attributes:
        latents: $a$, the coefficient of the latents.
        velocity: $b$, the coefficient of the velocity.
        scale: $s$, the standard deviation of the transition; 0 for a deterministic step.
    """

    latents: PerCompletion
    velocity: PerCompletion
    scale: PerCompletion


class Dynamics(ABC):
    """Rule for one denoising step, whose mean is linear in the latents and the velocity.

    Subclass requirements:

    - Implement `coefficients`. They depend on the two times only, and must be finite for 1 >= t > t' >= 0.
    - A scale of 0 means that the step is deterministic. It has no density and is not trained.
    """

    @abstractmethod
    def coefficients(self, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
        """Return the coefficients of the step from one time to the next; both times have shape `batch`."""

    def transition(
        self, latents: Tensor, velocity: Tensor, time: PerCompletion, next_time: PerCompletion
    ) -> Transition:
        """Return the distribution of the latents at the next time, at least in float32.

        Args:
            latents: latents at the present time; shape `batch *latent`.
            velocity: velocity that the model predicts for them; shape `batch *latent`.
            time: present time, above the next one, at most 1; shape `batch`.
            next_time: next time, at least 0; shape `batch`.

        Raises:
            ValueError: the shapes disagree.
        """
        if velocity.shape != latents.shape:
            raise ValueError(
                f"`velocity` has shape {tuple(velocity.shape)}, but `latents` has shape {tuple(latents.shape)}; pass "
                "the velocity of every latent dimension."
            )
        for name, times in {"time": time, "next_time": next_time}.items():
            if times.shape != latents.shape[:1]:
                raise ValueError(
                    f"`{name}` has shape {tuple(times.shape)}, but `latents` has batch={len(latents)}; pass one time "
                    "per trajectory."
                )
        # Differences of means are squared and divided by a small variance: bfloat16 is not enough.
        dtype = torch.promote_types(torch.promote_types(latents.dtype, velocity.dtype), torch.float32)
        of_latents, of_velocity, scale = (numbers.to(dtype) for numbers in self.coefficients(time, next_time))
        shift = per_latent(of_velocity, latents) * velocity.to(dtype)
        return Transition(per_latent(of_latents, latents) * latents.to(dtype) + shift, scale)


@dataclass(frozen=True)
class ODE(Dynamics):
    """Euler step of the probability flow, $x' = x + (t' - t) v$, without noise: for evaluation.

    Exact in one step if the target is a single point. For other targets the error of the marginals falls with the
    number of steps, to first order.
    """

    @override
    def coefficients(self, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
        return StepCoefficients(torch.ones_like(time), next_time - time, torch.zeros_like(time))


@dataclass(frozen=True)
class FlowSDE(Dynamics):
    r"""Stochastic dynamics of Flow-GRPO, with the diffusion $\sigma_t = a \sqrt{t / (1 - t)}$.

    With $h = t - t'$,

    $$\mu = x - h \left[v + \frac{\sigma_t^2}{2 t} \hat\epsilon\right], \qquad s = \sigma_t \sqrt{h}.$$

    At $t = 1$, where $\sigma_t$ is infinite, the denominator is $1 - t'$ instead, as in the authors' code. The variance
    of the first step is then $a^2$ for any number of steps. Later steps reduce the error that it makes, and the
    marginals converge to those of the flow, but slowly where $a$ is small: for a Gaussian target the error of the
    variance falls about as the power $a^2$ of the step.

    Args:
        noise: Factor $a$ of the diffusion.

    Raises:
        ValueError: `noise` is not positive.

    Reference: arXiv:2505.05470.
    """

    noise: float = 0.7

    def __post_init__(self) -> None:
        require_positive(noise=self.noise)

    @override
    def coefficients(self, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
        from_sample = 1 - torch.where(time < 1, time, next_time)
        return _diffused(self.noise * (time / from_sample).sqrt(), time, next_time)


@dataclass(frozen=True)
class DanceSDE(Dynamics):
    r"""Stochastic dynamics of DanceGRPO, with a constant diffusion $\sigma_t = \eta$.

    Mean and scale are those of `FlowSDE` for this diffusion. The marginals converge to those of the flow, for a
    Gaussian target to first order in the step. Near $t = 0$ the score of a target without spread grows as $1 / t^2$,
    and the steps are unstable there.

    Args:
        noise: Diffusion $\eta$; 0.3 is the value for FLUX.

    Raises:
        ValueError: `noise` is not positive.

    Reference: arXiv:2505.07818.
    """

    noise: float = 0.3

    def __post_init__(self) -> None:
        require_positive(noise=self.noise)

    @override
    def coefficients(self, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
        return _diffused(torch.full_like(time, self.noise), time, next_time)


@dataclass(frozen=True)
class CPS(Dynamics):
    r"""Coefficients-preserving sampling: part of the predicted noise is replaced by new noise.

    With $\theta = \eta \pi / 2$,

    $$\mu = (1 - t') \hat x_0 + t' \cos\theta \, \hat\epsilon, \qquad s = t' \sin\theta,$$

    so the coefficients of sample and noise are those of the path at $t'$. The marginals are exact in any number of
    steps if the target is a single point. For a target with spread they have too little variance, also in the limit of
    many steps, because $\hat x_0$ is a mean: for a standard normal target and the default, the samples have the
    variance 0.52 with ten uniform steps, and 0.65 with very many. The last step, to $t' = 0$, is deterministic.

    The transition has the density of this Gaussian; the authors' code replaces its log by the negative squared distance
    to the mean, without the factor $1 / (2 s^2)$.

    Args:
        noise: Fraction $\eta$ of a right angle, at most 1; 0.8 is the authors' value.

    Raises:
        ValueError: `noise` is not positive, or above 1.

    Reference: arXiv:2509.05952.
    """

    noise: float = 0.8

    def __post_init__(self) -> None:
        require_positive(noise=self.noise)
        if self.noise > 1:
            raise ValueError(f"`noise` is {self.noise}; pass a fraction of a right angle, at most 1.")

    @override
    def coefficients(self, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
        angle = self.noise * math.pi / 2
        of_sample, of_noise = 1 - next_time, next_time * math.cos(angle)
        of_velocity = (1 - time) * of_noise - time * of_sample
        return StepCoefficients(of_sample + of_noise, of_velocity, next_time * math.sin(angle))


def _diffused(diffusion: PerCompletion, time: PerCompletion, next_time: PerCompletion) -> StepCoefficients:
    """Return the Euler-Maruyama step of the SDE that has a given diffusion and the marginals of the flow."""
    step = time - next_time
    correction = diffusion.square() / (2 * time)  # of the drift, by the score
    return StepCoefficients(1 - step * correction, -step * (1 + (1 - time) * correction), diffusion * step.sqrt())
