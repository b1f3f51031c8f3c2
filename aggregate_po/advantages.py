"""Advantages from the rewards of a group: completions of one prompt stand next to each other."""

from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.batch import PerCompletion

Grouped = Annotated[Tensor, "prompt group"]


def group_normalized(rewards: PerCompletion, group_size: int, *, ddof: int = 1, delta: float = 1e-6) -> PerCompletion:
    """Rewards less their group's mean, over its standard deviation.

    Args:
        rewards: one per completion, group after group; shape `batch`.
        group_size: completions per prompt; a group of one has advantage 0.
        ddof: 1 for the unbiased standard deviation, 0 for that of the population.
        delta: added to the standard deviation.

    Returns:
        Advantages; shape `batch`.

    Raises:
        ValueError: the rewards do not divide into groups, or `ddof` is neither 0 nor 1.

    Example:
        >>> group_normalized(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)
        tensor([ 1.5000, -0.5000, -0.5000, -0.5000])

    Reference: GRPO, arXiv:2402.03300. Papers write "std"; released code uses `ddof=1`.
    """
    if ddof not in (0, 1):
        raise ValueError(f"`ddof` is {ddof}; pass 1 for the unbiased standard deviation or 0 for the population's.")
    groups = _grouped(rewards, group_size)
    centered = _centered(groups)
    if group_size == 1:
        return _flat(centered)
    scaled = centered / (groups.std(dim=-1, keepdim=True, correction=ddof) + delta)
    return _flat(torch.where(centered == 0, 0, scaled))  # with delta = 0, equal rewards would give 0/0


def group_centered(rewards: PerCompletion, group_size: int) -> PerCompletion:
    """Rewards less their group's mean.

    Args:
        rewards: one per completion, group after group; shape `batch`.
        group_size: completions per prompt; a group of one has advantage 0.

    Returns:
        Advantages; shape `batch`.

    Raises:
        ValueError: the rewards do not divide into groups.

    Reference: Dr. GRPO, arXiv:2503.20783.
    """
    return _flat(_centered(_grouped(rewards, group_size)))


def leave_one_out(rewards: PerCompletion, group_size: int) -> PerCompletion:
    """Rewards less the mean of the others in their group.

    Args:
        rewards: one per completion, group after group; shape `batch`.
        group_size: completions per prompt; a group of one has no others, and advantage 0.

    Returns:
        Advantages; shape `batch`.

    Raises:
        ValueError: the rewards do not divide into groups.

    Reference: RLOO, arXiv:2402.14740.
    """
    return group_centered(rewards, group_size) * (group_size / max(group_size - 1, 1))


def _grouped(rewards: PerCompletion, group_size: int) -> Grouped:
    if rewards.ndim != 1:
        raise ValueError(f"`rewards` has shape {tuple(rewards.shape)}; pass one reward per completion, shape `batch`.")
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(
            f"`rewards` has batch={len(rewards)}, which `group_size`={group_size} does not divide; pass whole groups, "
            "the completions of one prompt next to each other."
        )
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    return rearrange(rewards, "(prompt group) -> prompt group", group=group_size)


def _centered(groups: Grouped) -> Grouped:
    """Less the mean; exactly 0 where all rewards are equal, whatever the mean rounds to."""
    all_equal = groups.amax(dim=-1, keepdim=True) == groups.amin(dim=-1, keepdim=True)
    return torch.where(all_equal, 0, groups - groups.mean(dim=-1, keepdim=True))


def _flat(groups: Grouped) -> PerCompletion:
    return rearrange(groups, "prompt group -> (prompt group)")
