"""Figures of a rollout, from sums that any division into ranks agrees on."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.rollouts import Completions

RolloutSums = Annotated[Tensor, "figure"]


def rollout_sums(rewards: PerCompletion, drawn: Completions, group_size: int) -> RolloutSums:
    """Sums over this rank's completions, from which the figures of the rollout follow on all ranks together."""
    groups = rearrange(rewards.double(), "(prompt group) -> prompt group", group=group_size)
    return torch.stack(
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


def rollout_figures(sums: RolloutSums) -> dict[str, float]:
    """Figures by name; `reward_spread` is the standard deviation over all completions, `reward_std` within groups."""
    completions, total, squares, groups, stds, equal, tokens, cut_off = sums.tolist()
    mean = total / completions
    return {
        "reward": mean,
        "reward_std": stds / groups,
        "reward_spread": math.sqrt(max(squares / completions - mean**2, 0.0)),
        "frac_reward_zero_std": equal / groups,
        "completions/mean_length": tokens / completions,
        "completions/clipped_ratio": cut_off / completions,
        "num_tokens": tokens,
    }
