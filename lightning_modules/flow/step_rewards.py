"""Reward of each denoising step: that of the sample to which the flow would lead from the latents after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po import PerCompletion, PerToken
from lightning_modules.data.groups import Groups
from lightning_modules.flow.policy import FlowPolicy
from lightning_modules.flow.sampler import SampledSteps
from lightning_modules.rewards import FailedVerdictRule, WeightedRewards, scored_completions


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


@dataclass(frozen=True)
class StepRewards:
    """Rewards of the steps of trajectories.

    Args:
        values: total reward of each step; shape `batch time`; float64.
        scored: True for trajectories whose steps all have a reward, by the rule for failed verdicts; shape `batch`.
        failed: number of steps on which a verdict failed; a scalar.
    """

    values: PerToken
    scored: PerCompletion
    failed: Tensor


@torch.no_grad()
def step_rewards(
    groups: Groups,
    times: Tensor,
    policy: FlowPolicy,
    rewards: WeightedRewards,
    rule: FailedVerdictRule,
    at_once: int | None,
) -> StepRewards:
    """Return the total reward of each step.

    The last step has that of the sample, which is not scored again, so the rewards are called once less than there are
    steps.

    Args:
        groups: scored trajectories of this rank.
        times: see `projected_latents`.
        policy: policy that decodes latents.
        rewards: rewards of a sample.
        rule: rule for failed verdicts.
        at_once: largest number of latents that are decoded together; None for all.

    Raises:
        RuntimeError: a verdict failed, and the rule is "error".
    """
    last = groups.rewards.double().unsqueeze(-1)
    projected = projected_latents(cast(SampledSteps, groups.completions), times)[:, :-1]
    steps = projected.shape[1]
    if not steps:
        return StepRewards(last, torch.ones_like(groups.scored), torch.tensor(0))
    samples = _decoded(rearrange(projected, "batch step ... -> (batch step) ..."), policy, at_once)
    examples = [prompt.example for prompt in groups.prompts for _ in range(groups.group_size * steps)]
    scores = rewards.scores(samples, examples)
    scored, values = (
        rearrange(each, "(batch step) -> batch step", step=steps)
        for each in (scored_completions(rule, scores, kind="steps"), rewards.total(scores.components))
    )
    failed = sum(any(causes) for causes in scores.causes)
    return StepRewards(torch.cat([values, last], dim=1), scored.all(dim=1), torch.tensor(failed))


def _decoded(rows: Tensor, policy: FlowPolicy, at_once: int | None) -> list[Any]:
    """Return the samples of latents, in order."""
    samples: list[Any] = []
    with policy.forward_context():
        for part in rows.split(at_once or len(rows)):
            samples += policy.model.decode(part.to(policy.device))
    return samples
