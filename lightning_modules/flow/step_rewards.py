"""Reward of each denoising step: that of the sample to which the flow would lead from the latents after it."""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po import PerToken
from lightning_modules.data.groups import Groups
from lightning_modules.flow.policy import FlowPolicy
from lightning_modules.flow.sampler import SampledSteps
from lightning_modules.rewards import WeightedRewards


def projected_latents(sampled: SampledSteps, times: Tensor) -> Tensor:
    r"""Return where one step of the ODE to time 0 leads from the latents after each step; shape `batch time *latent`.

    That is $x - t v$ with the velocity $v$ of the behavior policy, which is known from the mean of the next step. The
    last one is the sample itself.

    Args:
        sampled: trajectories.
        times: decreasing times from noise to sample; shape `time+1`.
    """
    before, means = sampled.latents[:, 1:-1], sampled.means[:, 1:]  # of the second step on
    at = times[1:-1].to(before.dtype).expand(before.shape[:2])

    def of_each(numbers: PerToken) -> Tensor:
        return numbers.reshape(*numbers.shape, *[1] * (before.ndim - 2))

    velocity = (means - of_each(sampled.of_latents[:, 1:]) * before) / of_each(sampled.of_velocity[:, 1:])
    return torch.cat([before - of_each(at) * velocity, sampled.latents[:, -1:]], dim=1)


@torch.no_grad()
def step_rewards(
    groups: Groups,
    times: Tensor,
    policy: FlowPolicy,
    rewards: WeightedRewards,
    at_once: int | None,
) -> tuple[PerToken, Tensor]:
    """Return the total reward of each step, and the number of those whose verdict failed.

    A failed verdict gives its step the reward of the sample. The last step has that of the sample, which is not scored
    again, so the rewards are called once less than there are steps.

    Args:
        groups: scored trajectories of this rank.
        times: see `projected_latents`.
        policy: policy that decodes latents.
        rewards: rewards of a sample.
        at_once: largest number of latents that are decoded together; None for all.

    Returns:
        Rewards in float64, shape `batch time`, and a scalar.
    """
    of_samples = groups.rewards.double()
    projected = projected_latents(cast(SampledSteps, groups.completions), times)[:, :-1]
    steps = projected.shape[1]
    if not steps:
        return of_samples.unsqueeze(-1), torch.tensor(0)
    rows = rearrange(projected, "batch step ... -> (batch step) ...")
    with policy.forward_context():
        samples: list[Any] = []
        for part in rows.split(at_once or len(rows)):
            samples += policy.model.decode(part.to(policy.device))
    examples = [prompt.example for prompt in groups.prompts for _ in range(groups.group_size * steps)]
    scores = rewards.scores(samples, examples)
    failed = torch.tensor([any(causes) for causes in scores.causes], dtype=torch.bool)
    values = torch.where(failed, of_samples.repeat_interleave(steps), rewards.total(scores.components))
    return torch.cat(
        [rearrange(values, "(batch step) -> batch step", step=steps), of_samples.unsqueeze(-1)], dim=1
    ), failed.sum()
