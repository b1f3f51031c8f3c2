"""Advantages of the completions of this rank, estimated from the rewards of all ranks."""

from __future__ import annotations

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor

from aggregate_po import AdvantageEstimator, GroupedRewards, PerCompletion, PerToken
from aggregate_po.shapes import require_shape
from lightning_modules.data.groups import Groups
from lightning_modules.distributed import data_parallel_rank, data_parallel_size, gathered_over_ranks
from lightning_modules.tally import Tally


def advantages(
    estimator: AdvantageEstimator,
    groups: Groups,
    rewards: PerCompletion,
    weights: tuple[float, ...],
    seed: int,
    trainer: Trainer,
) -> PerCompletion | PerToken:
    """Return the advantages of the completions of this rank, 0 without a reward; shape `batch`, or `batch time`.

    Args:
        estimator: advantage estimator; it receives the rewards of all ranks in prompt order, for any number of ranks.
        groups: groups of this rank; every rank has the same number.
        rewards: rewards of the completions of this rank; shape `batch`.
        weights: weights of the single rewards.
        seed: seed of random estimators; the same on every rank.
        trainer: trainer, for collectives over ranks.

    Raises:
        ValueError: the estimator returned a wrong shape.
    """
    sizes = {"rank": data_parallel_size(trainer), "group": groups.group_size}
    mask = groups.completions.mask
    columns = {"rewards": rewards, "lengths": mask.sum(dim=-1), "scored": groups.scored}
    columns |= _numbered("component", groups.components)
    if groups.step_rewards is not None:
        columns |= _numbered("step", groups.step_rewards)
    gathered = _gathered_columns(columns, sizes, trainer)
    components = [column for name, column in gathered.items() if name.startswith("component")]
    rollout = GroupedRewards(
        rewards=gathered["rewards"].to(rewards.dtype),
        group_size=groups.group_size,
        lengths=gathered["lengths"].long(),
        components=torch.stack(components, dim=-1).to(groups.components.dtype),
        component_weights=weights,
        seed=seed,
        scored=None if gathered["scored"].all() else gathered["scored"].bool(),
        step_rewards=_step_rewards(gathered),
    )
    estimated = estimator(rollout)
    longest = torch.Size([int(gathered["lengths"].max())] if estimated.ndim > 1 else [])
    words = "`batch` or `batch time`, `time` being the longest length"
    require_shape(estimator, "__call__", estimated, words, rollout.rewards.shape + longest)
    if rollout.scored is not None:  # also for an estimator that does not know of it
        estimated = torch.where(rollout.scored if estimated.ndim == 1 else rollout.scored.unsqueeze(-1), estimated, 0)
    by_rank = rearrange(estimated, "(prompt rank group) ... -> rank (prompt group) ...", **sizes)
    local = by_rank[data_parallel_rank(trainer)]
    if local.ndim == 1:
        return local
    # A negative width truncates: the longest completion may be on another rank.
    return torch.nn.functional.pad(local, (0, mask.shape[1] - local.shape[1]))


def has_advantage(estimated: PerCompletion | PerToken, trainer: Trainer) -> bool:
    """Whether an advantage of any rank differs from 0; every rank must call it."""
    return Tally(maxima={"nonzero": float((estimated != 0).any())}).over_ranks(trainer).maxima["nonzero"] > 0


def _numbered(name: str, table: Tensor) -> dict[str, Tensor]:
    return {f"{name} {number}": column for number, column in enumerate(table.unbind(dim=-1))}


def _step_rewards(columns: dict[str, Tensor]) -> PerToken | None:
    steps = [column for name, column in columns.items() if name.startswith("step ")]
    return torch.stack(steps, dim=-1) if steps else None


def _gathered_columns(columns: dict[str, Tensor], sizes: dict[str, int], trainer: Trainer) -> dict[str, Tensor]:
    """Gather named columns of all ranks in float64, in prompt order; ranks take prompts in turn."""
    table = torch.stack([column.double() for column in columns.values()], dim=-1)
    gathered = gathered_over_ranks(table, trainer)
    ordered = rearrange(gathered, "(rank prompt group) column -> (prompt rank group) column", **sizes)
    return dict(zip(columns, ordered.unbind(dim=-1), strict=True))
