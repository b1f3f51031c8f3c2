"""Rewards that are not there: of completions whose reward function was killed, and of steps beyond the last."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def with_company(scored: Tensor, group_size: int) -> Tensor:
    """Return the mask with False for groups of several completions that have fewer than two; shape `batch`."""
    groups = rearrange(scored, "(prompt group) -> prompt group", group=group_size)
    counts = groups.sum(dim=-1, keepdim=True)
    return rearrange(groups & (counts >= min(2, group_size)), "prompt group -> (prompt group)")


def within_lengths(values: Tensor, lengths: Tensor) -> Tensor:
    """Return values of steps with 0 beyond the length of the completion; shape `batch time`."""
    time = torch.arange(values.shape[-1], device=values.device)
    return torch.where(time < rearrange(lengths, "batch -> batch 1"), values, 0)


def filled(values: Tensor, scored: Tensor, group_size: int) -> Tensor:
    """Return values, of shape `batch ...`, with those that are not scored replaced by the mean of the others.

    It is the mean over their group, or over the rollout if their group has no others, or 0 if there are none at all.
    """
    weights = rearrange(scored, "(prompt group) -> prompt group", group=group_size).double()
    known = torch.where(rearrange(scored, "batch -> batch" + " 1" * (values.ndim - 1)), values, 0).double()
    groups = rearrange(known, "(prompt group) ... -> prompt group ...", group=group_size)
    shape = (len(weights), group_size, *[1] * (values.ndim - 1))
    # Divide before the sum, which could overflow otherwise.
    means = (groups / weights.sum(dim=-1).clamp(min=1).reshape(-1, 1, *shape[2:])).sum(dim=1, keepdim=True)
    overall = (known / scored.sum().clamp(min=1)).sum(dim=0)
    means = torch.where(weights.any(dim=-1).reshape(-1, 1, *shape[2:]), means, overall)
    replaced = torch.where(weights.bool().reshape(shape), groups, means)
    return rearrange(replaced, "prompt group ... -> (prompt group) ...").to(values.dtype)
