"""Denoising steps as the input of a forward pass, and the micro-batch of a flow-matching model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po import PerCompletion, PerToken, PolicyBatch
from lightning_modules.batch import Extent
from lightning_modules.flow.transition import Transition, per_latent
from lightning_modules.micro_batch import MicroBatch, ModelInputs


class DenoisingSteps(ModelInputs):
    """Trajectories with their conditions; each step's mean is linear in its latents and the velocity there.

    Args:
        conditions: conditions of the distinct prompts, as `FlowModel.encode` returns them.
        prompt_of: index of each trajectory's prompt; shape `batch`.
        completion_mask: True on all steps, trained or not; shape `batch time`.
        latents: latents at all times, from noise to sample; shape `batch time+1 *latent`.
        means: means of the transitions under the behavior policy; shape `batch time *latent`.
        times: time of each step, from 1 (noise) to 0; shape `batch time`.
        of_latents: coefficient of the latents in the mean of each step; shape `batch time`.
        of_velocity: coefficient of the velocity in it; shape `batch time`.
        scales: standard deviation of each step, 0 for deterministic ones; shape `batch time`.
    """

    def __init__(
        self,
        conditions: dict[str, Tensor],
        prompt_of: Tensor,
        completion_mask: PerToken,
        latents: Tensor,
        means: Tensor,
        times: PerToken,
        of_latents: PerToken,
        of_velocity: PerToken,
        scales: PerToken,
    ) -> None:
        self.conditions = conditions
        self.prompt_of = prompt_of
        self.completion_mask = completion_mask
        self.latents, self.means, self.times = latents, means, times
        self.of_latents, self.of_velocity, self.scales = of_latents, of_velocity, scales

    @property
    @override
    def prompt_lengths(self) -> Tensor:
        """Zero for each prompt, since conditions are no tokens; shape `prompt`."""
        return torch.zeros(int(self.prompt_of.max()) + 1, dtype=torch.long)

    @property
    def stochastic_steps(self) -> Tensor:
        """Numbers of the steps that have a density in any trajectory, in order; shape `step`."""
        return (self.scales > 0).any(dim=0).nonzero().squeeze(-1)

    @property
    @override
    def pass_lengths(self) -> Tensor:
        """Number of steps of each trajectory in a forward pass, which has all that are stochastic in any of them."""
        return torch.full((len(self.scales),), len(self.stochastic_steps))

    @override
    def select(self, rows: Tensor) -> Self:
        prompts, prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        per_row = ("completion_mask", "latents", "means", "times", "of_latents", "of_velocity", "scales")
        return self.replace(
            conditions={name: values[prompts] for name, values in self.conditions.items()},
            prompt_of=prompt_of,
            **{name: getattr(self, name)[rows] for name in per_row},
            **self._selected(rows, self.completion_mask.shape[1]),
        )

    @override
    def micro_batch(self, **fields: Any) -> DenoisingBatch:
        return DenoisingBatch(**vars(self), **fields)

    def at(self, steps: Tensor) -> FlatSteps:
        """Return the given steps of all trajectories as rows, those of one trajectory next to each other."""

        def rows(values: Tensor) -> Tensor:
            return rearrange(values[:, steps], "batch step ... -> (batch step) ...")

        prompt_of = self.prompt_of.repeat_interleave(len(steps))
        return FlatSteps(
            conditions={name: values[prompt_of] for name, values in self.conditions.items()},
            latents=rows(self.latents),
            next_latents=rows(self.latents[:, 1:]),
            means=rows(self.means),
            times=rows(self.times),
            of_latents=rows(self.of_latents),
            of_velocity=rows(self.of_velocity),
            scales=rows(self.scales),
        )


@dataclass(frozen=True)
class FlatSteps:
    """Steps of trajectories as rows of one forward pass.

    Args:
        conditions: conditions of each step.
        latents: latents before each step; shape `row *latent`.
        next_latents: latents after it; shape `row *latent`.
        means: mean of the transition under the behavior policy; shape `row *latent`.
        times: time before the step; shape `row`.
        of_latents: coefficient of the latents in the mean; shape `row`.
        of_velocity: coefficient of the velocity in it; shape `row`.
        scales: standard deviation; shape `row`.
    """

    conditions: dict[str, Tensor]
    latents: Tensor
    next_latents: Tensor
    means: Tensor
    times: PerCompletion
    of_latents: PerCompletion
    of_velocity: PerCompletion
    scales: PerCompletion

    def transition(self, velocity: Tensor) -> Transition:
        """Return the transitions under the policy that predicts a velocity, at least in float32."""
        velocity = velocity.to(torch.promote_types(velocity.dtype, self.latents.dtype))
        kept, moved = per_latent(self.of_latents, velocity), per_latent(self.of_velocity, velocity)
        return Transition(kept * self.latents + moved * velocity, self.scales)


class DenoisingBatch(MicroBatch, DenoisingSteps):
    """A micro-batch of trajectories; the arguments are those of `DenoisingSteps` and the fields of `MicroBatch`."""

    def __init__(
        self,
        policy: PolicyBatch,
        closes_update: bool = True,
        samples: PerCompletion | None = None,
        rewards: PerCompletion | None = None,
        **steps: Any,
    ) -> None:
        super().__init__(**steps)
        self.policy = policy
        self.closes_update = closes_update
        self.samples = samples
        self.rewards = rewards

    @classmethod
    @override
    def _prompts_in(cls, state: dict[str, Any]) -> int:
        return int(state["prompt_of"].max()) + 1


class StepCount:
    """Size of a micro-batch of trajectories: its number of steps in the forward pass."""

    def size(self, extent: Extent) -> int:
        """Return the number of stochastic steps."""
        return extent.tokens
