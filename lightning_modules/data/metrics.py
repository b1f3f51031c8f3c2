"""Figures of a rollout, from sums that any division into ranks agrees on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.rollouts import Completions

RolloutSums = Annotated[Tensor, "figure"]


def rollout_sums(rewards: PerCompletion, components: Tensor, drawn: Completions, group_size: int) -> RolloutSums:
    """Sums over this rank's completions, from which the figures of the rollout follow on all ranks together.

    Args:
        rewards: total reward of each completion; shape `batch`.
        components: the single rewards; shape `batch component`.
        drawn: the completions.
        group_size: completions per prompt.
    """
    groups = rearrange(rewards.double(), "(prompt group) -> prompt group", group=group_size)
    sums = torch.stack(
        [
            torch.tensor(rewards.numel(), dtype=torch.double),
            rewards.double().sum(),
            rewards.double().square().sum(),
            torch.tensor(len(groups), dtype=torch.double),
            groups.std(dim=-1).sum(),
            (groups.amax(dim=-1) == groups.amin(dim=-1)).double().sum(),
            drawn.mask.double().sum(),
            (~drawn.finished).double().sum(),
        ]
    )
    return torch.cat([sums, components.double().sum(dim=0)])


def rollout_figures(sums: RolloutSums, reward_names: Sequence[str]) -> dict[str, float]:
    """Figures by name; `reward_std` is the standard deviation of all completions, `reward_group_std` within groups."""
    completions, total, squares, groups, stds, equal, tokens, cut_off, *components = sums.tolist()
    mean = total / completions
    single = {f"rewards/{name}/mean": one / completions for name, one in zip(reward_names, components, strict=True)}
    return {
        "reward": mean,
        "reward_group_std": stds / groups,
        "reward_std": math.sqrt(max(squares / completions - mean**2, 0.0)),
        "frac_reward_zero_std": equal / groups,
        "completions/mean_length": tokens / completions,
        "completions/clipped_ratio": cut_off / completions,
        "num_tokens": tokens,
        **single,
    }
