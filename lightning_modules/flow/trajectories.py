"""Sampling of trajectories: latents at all times, with the transition of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from aggregate_po import PerToken
from lightning_modules.flow.dynamics import ODE, Dynamics
from lightning_modules.flow.model import FlowModel
from lightning_modules.flow.schedule import require_times


@dataclass(frozen=True)
class Trajectories:
    """Sampled trajectories; `time` counts denoising steps, the tokens of a trajectory.

    Args:
        latents: latents at all times, from noise to sample; shape `batch time+1 *latent`.
        means: means of the transitions; shape `batch time *latent`.
        scales: standard deviations of the transitions, 0 for deterministic steps; shape `batch time`.
        log_probs: log-densities of the steps, averaged over latent dimensions, 0 for deterministic steps; shape
            `batch time`; nats.
        mask: True for stochastic steps, which can be trained; shape `batch time`.
    """

    latents: Tensor
    means: Tensor
    scales: PerToken
    log_probs: PerToken
    mask: PerToken

    @property
    def final_latents(self) -> Tensor:
        """Latents at the last time, which the model decodes; shape `batch *latent`."""
        return self.latents[:, -1]


@torch.no_grad()
def sample_trajectories(
    model: FlowModel,
    conditions: Mapping[str, Tensor],
    times: Tensor,
    dynamics: Dynamics,
    seeds: Sequence[int],
    stochastic: Tensor | None = None,
) -> Trajectories:
    """Sample one trajectory for each seed, on the device of the model and without gradient.

    All noise of a trajectory comes from its own seed, on the CPU. It depends neither on the other trajectories of the
    batch, nor on the device, nor on which steps are stochastic; see `lightning_modules.seeding.derived_seed`.

    Args:
        model: model that predicts the velocity.
        conditions: conditions of each trajectory; the first dimension of each tensor is the trajectories.
        times: decreasing times from noise to sample; shape `time+1`; see `uniform_times`.
        dynamics: rule of the stochastic steps.
        seeds: seed of each trajectory.
        stochastic: True for steps that follow `dynamics`; the others are steps of the ODE; shape `time`; all steps when
            None.

    Returns:
        Trajectories in float32.

    Raises:
        ValueError: `times` do not decrease from at most 1 to at least 0, or there is not one row of conditions per
            seed, or not one element of `stochastic` per step.
    """
    require_times(times)
    steps, batch = len(times) - 1, len(seeds)
    if stochastic is not None and stochastic.shape != (steps,):
        raise ValueError(
            f"`stochastic` has shape {tuple(stochastic.shape)}; pass one element for each of {steps} steps."
        )
    for name, rows in conditions.items():
        if len(rows) != batch:
            raise ValueError(
                f"the condition `{name}` has {len(rows)} rows, but there are {batch} `seeds`; pass one each."
            )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    followed = [dynamics if chosen else ODE() for chosen in ([True] * steps if stochastic is None else stochastic)]

    latents = [_noise(generators, model)]
    transitions = []
    for rule, (time, next_time) in zip(followed, pairwise(times.to(model.device)), strict=True):
        present = time.expand(batch)
        velocity = model(latents[-1], present, **conditions)
        transitions.append(rule.transition(latents[-1], velocity, present, next_time.expand(batch)))
        latents.append(transitions[-1].next_latents(_noise(generators, model)))
    return Trajectories(
        latents=torch.stack(latents, dim=1),
        means=torch.stack([transition.mean for transition in transitions], dim=1),
        scales=torch.stack([transition.scale for transition in transitions], dim=1),
        log_probs=torch.stack(
            [transition.log_prob(reached) for transition, reached in zip(transitions, latents[1:], strict=True)], dim=1
        ),
        mask=torch.stack([transition.is_stochastic for transition in transitions], dim=1),
    )


def _noise(generators: Sequence[torch.Generator], model: FlowModel) -> Tensor:
    """Return the next standard normal noise of each generator; shape `batch *latent`."""
    rows = [torch.randn(model.latent_shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(model.device)
