"""Gaussian transition of one denoising step: samples, log-density and divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po import PerCompletion

_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Transition:
    r"""Normal distribution of the next latents, $x' \sim \mathcal{N}(\mu, s^2 I)$, one for each trajectory.

    Log-densities and divergences are averages over the latent dimensions, not sums, as in Flow-GRPO. The log ratio of
    two transitions with equal scale is then $-D - \overline{\Delta\mu\,\epsilon} / s$, with
    $\Delta\mu = \mu_\mathrm{old} - \mu$, $D = \overline{\Delta\mu^2} / (2 s^2)$ and the noise $\epsilon$ of the
    step. Its expectation under the old policy is $-D$.

    A step with scale 0 is deterministic and has no density: `log_prob` and `divergence` are 0 there, and so is their
    gradient. `is_stochastic` is the mask of the steps that can be trained.

    Args:
        mean: mean of the next latents; shape `batch *latent`.
        scale: standard deviation of each latent dimension, 0 for a deterministic step; shape `batch`.

    Raises:
        ValueError: `scale` does not have one number per trajectory.

    Reference: Flow-GRPO, arXiv:2505.05470.
    """

    mean: Tensor
    scale: PerCompletion

    def __post_init__(self) -> None:
        if self.scale.shape != self.mean.shape[:1]:
            raise ValueError(
                f"`scale` has shape {tuple(self.scale.shape)}, but `mean` has shape {tuple(self.mean.shape)}; pass one "
                "number per trajectory."
            )

    @property
    def is_stochastic(self) -> PerCompletion:
        """True for steps with a density, which can be trained; shape `batch`."""
        return self.scale > 0

    def next_latents(self, noise: Tensor) -> Tensor:
        """Return the next latents for standard normal noise; both have shape `batch *latent`."""
        return self.mean + per_latent(self.scale, self.mean) * noise

    def log_prob(self, next_latents: Tensor) -> PerCompletion:
        """Return the log-density of the next latents, averaged over latent dimensions; shape `batch`; nats.

        A deterministic step has 0.

        Args:
            next_latents: latents after the step; shape `batch *latent`.
        """
        scale = self._positive_scale()
        log_densities = -0.5 * self._squared_distance(next_latents) / scale.square() - scale.log() - _LOG_SQRT_TWO_PI
        return torch.where(self.is_stochastic, log_densities, 0.0)

    def divergence(self, other_mean: Tensor) -> PerCompletion:
        r"""Return $D = \overline{(\mu - \mu_\mathrm{other})^2} / (2 s^2)$; shape `batch`; nats per latent dimension.

        This is the Kullback-Leibler divergence between two transitions of equal scale, in either direction, divided by
        the number of latent dimensions. A deterministic step has 0.

        Args:
            other_mean: mean of the other transition; shape `batch *latent`.
        """
        divergences = 0.5 * self._squared_distance(other_mean) / self._positive_scale().square()
        return torch.where(self.is_stochastic, divergences, 0.0)

    def _squared_distance(self, latents: Tensor) -> PerCompletion:
        return (latents - self.mean).square().flatten(start_dim=1).mean(dim=1)

    def _positive_scale(self) -> PerCompletion:
        """Return the scale, and 1 for deterministic steps, so that neither value nor gradient is NaN."""
        return torch.where(self.is_stochastic, self.scale, 1.0)


def per_latent(numbers: PerCompletion, latents: Tensor) -> Tensor:
    """Return one number per trajectory in a shape that broadcasts against latents of shape `batch *latent`."""
    return numbers.reshape(-1, *[1] * (latents.ndim - 1))
