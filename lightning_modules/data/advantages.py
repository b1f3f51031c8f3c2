"""Advantages of this rank's completions, estimated on the rewards of all ranks."""

from __future__ import annotations

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor

from aggregate_po import AdvantageEstimator, GroupedRewards, PerCompletion, PerToken
from aggregate_po.shapes import require_shape
from lightning_modules.data.groups import Groups
from lightning_modules.distributed import data_parallel_rank, data_parallel_size, gathered_over_ranks


def advantages(
    estimator: AdvantageEstimator,
    groups: Groups,
    rewards: PerCompletion,
    weights: tuple[float, ...],
    seed: int,
    trainer: Trainer,
) -> PerCompletion | PerToken:
    """Return the advantages of this rank's completions; shape `batch`, or `batch time`.

    Args:
        estimator: sees the rewards of all ranks, in the order of the prompts, whatever the number of ranks.
        groups: of this rank, as many on each.
        rewards: of its completions; shape `batch`.
        weights: of the single rewards.
        seed: for estimators that are random; the same on every rank.
        trainer: knows the ranks.

    Raises:
        ValueError: the estimator returned another shape.
    """
    sizes = {"rank": data_parallel_size(trainer), "group": groups.group_size}
    mask = groups.completions.mask
    columns = {"rewards": rewards, "lengths": mask.sum(dim=-1)}
    everyone = _gathered({**columns, **_component_columns(groups.components)}, sizes, trainer)
    components = [column for name, column in everyone.items() if name.startswith("component")]
    rollout = GroupedRewards(
        rewards=everyone["rewards"].to(rewards.dtype),
        group_size=groups.group_size,
        lengths=everyone["lengths"].long(),
        components=torch.stack(components, dim=-1).to(groups.components.dtype),
        component_weights=weights,
        seed=seed,
    )
    estimated = estimator(rollout)
    longest = torch.Size([int(everyone["lengths"].max())] if estimated.ndim > 1 else [])
    words = "`batch` or `batch time`, `time` being the longest length"
    require_shape(estimator, "__call__", estimated, words, rollout.rewards.shape + longest)
    by_rank = rearrange(estimated, "(prompt rank group) ... -> rank (prompt group) ...", **sizes)
    mine = by_rank[data_parallel_rank(trainer)]
    if mine.ndim == 1:
        return mine
    # A negative width cuts: another rank's completions may be longer than any of this one's.
    return torch.nn.functional.pad(mine, (0, mask.shape[1] - mine.shape[1]))


def _component_columns(components: Tensor) -> dict[str, Tensor]:
    return {f"component {number}": column for number, column in enumerate(components.unbind(dim=-1))}


def _gathered(columns: dict[str, Tensor], sizes: dict[str, int], trainer: Trainer) -> dict[str, Tensor]:
    """Gather named columns of all ranks in float64, back in the order of the prompts, which ranks take in turn."""
    table = torch.stack([column.double() for column in columns.values()], dim=-1)
    everyone = gathered_over_ranks(table, trainer)
    ordered = rearrange(everyone, "(rank prompt group) column -> (prompt rank group) column", **sizes)
    return dict(zip(columns, ordered.unbind(dim=-1), strict=True))
