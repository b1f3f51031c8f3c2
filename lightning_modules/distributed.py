"""What holds a step together when it is cut into ranks and micro-batches."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from einops import rearrange
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return dist.get_rank() if _initialized() else 0


def number_of_ranks() -> int:
    """How many they are."""
    return dist.get_world_size() if _initialized() else 1


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def wait_for_ranks(device: torch.device) -> None:
    """Return when every rank has got here."""
    if number_of_ranks() > 1:
        arrived = torch.ones(1, device=device)
        dist.all_reduce(arrived)
        arrived.item()  # on a GPU the call above returns at once


def agreed_text(text: str, device: torch.device) -> str:
    """Rank 0's text, on every rank."""
    values = [text]
    if number_of_ranks() > 1:
        dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def collected_on_first_rank(value: Any) -> list[Any]:
    """What each rank passes, by rank, for a checkpoint; empty on all ranks but the first, which writes it."""
    if number_of_ranks() == 1:
        return [value]
    collected = [None] * number_of_ranks() if rank() == 0 else None
    dist.gather_object(value, collected)
    return collected or []


def data_parallel_rank(trainer: Trainer) -> int:
    """Return the number of this rank's shard of the data, from 0; the ranks of a tensor-parallel group share one."""
    return (trainer.distributed_sampler_kwargs or {"rank": 0})["rank"]


def data_parallel_size(trainer: Trainer) -> int:
    """Return the number of shards of the data."""
    return (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]


def tensor_parallel_size(trainer: Trainer) -> int:
    """Return the number of ranks that share the layers of one model."""
    return trainer.world_size // data_parallel_size(trainer)


def is_tensor_parallel_leader(trainer: Trainer) -> bool:
    """Whether this is rank 0 of its tensor-parallel group; the ranks of a group are contiguous."""
    return trainer.global_rank % tensor_parallel_size(trainer) == 0


def broadcast_in_tensor_parallel_group(value: Any, trainer: Trainer) -> Any:
    """Return the value of the group's rank 0 on all ranks of a tensor-parallel group."""
    if tensor_parallel_size(trainer) == 1:
        return value
    mesh, values = cast(ModelParallelStrategy, trainer.strategy).device_mesh["tensor_parallel"], [value]
    dist.broadcast_object_list(values, group=mesh.get_group(), group_src=0)
    return values[0]


def loss_scale(trainer: Trainer) -> int:
    """Return what Lightning and the gradient reduction divide a loss by.

    The objective is normalized by totals of the whole optimizer step, so the gradients of micro-batches must add up:
    accumulation divides by the number of micro-batches and data parallelism by the number of shards of the data.
    """
    return data_parallel_size(trainer) * trainer.accumulate_grad_batches


def summed_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """Return the sum of the tensors of all shards of the data, on every rank and on the CPU."""
    if trainer.world_size == 1:
        return values
    mine = values if is_tensor_parallel_leader(trainer) else torch.zeros_like(values)
    reduced = trainer.strategy.reduce(mine.to(trainer.strategy.root_device), reduce_op="sum")
    return torch.as_tensor(reduced).cpu()


def gathered_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """Return the rows of all shards of the data, one shard after another, on every rank and on the CPU."""
    if trainer.world_size == 1:
        return values
    gathered = trainer.strategy.all_gather(values.to(trainer.strategy.root_device))
    return rearrange(gathered[:: tensor_parallel_size(trainer)], "rank batch ... -> (rank batch) ...").cpu()
