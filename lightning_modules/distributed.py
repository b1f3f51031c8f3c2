"""Ranks and collectives: the data-parallel shards and the tensor-parallel groups of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from einops import rearrange
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

Value = TypeVar("Value")


def rank() -> int:
    """Return the rank of this process; 0 outside distributed training."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 outside distributed training."""
    return dist.get_world_size() if _initialized() else 1


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def wait_for_ranks(device: torch.device) -> None:
    """Block until every rank has called this function (a barrier)."""
    if world_size() > 1:
        arrived = torch.ones(1, device=device)
        dist.all_reduce(arrived)
        arrived.item()  # on a GPU the call above returns at once


def maxima_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the largest of each value over all ranks, on every rank; every rank must call it."""
    largest = torch.tensor(values, dtype=torch.float32, device=device)
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return list(largest.tolist())


def broadcast_value(value: Value, device: torch.device) -> Value:
    """Return the value of rank 0 on every rank; it is pickled."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def gathered_on_rank_zero(value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks, on rank 0; an empty list on the other ranks."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []


def data_parallel_rank(trainer: Trainer) -> int:
    """Return the data-parallel rank, from 0; all ranks of a tensor-parallel group have the same one."""
    return (trainer.distributed_sampler_kwargs or {"rank": 0})["rank"]


def data_parallel_size(trainer: Trainer) -> int:
    """Return the number of data-parallel shards."""
    return (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]


def tensor_parallel_size(trainer: Trainer) -> int:
    """Return the number of ranks that one copy of the model is sharded over by tensor parallelism."""
    return trainer.world_size // data_parallel_size(trainer)


def is_tensor_parallel_leader(trainer: Trainer) -> bool:
    """Whether this is rank 0 of its tensor-parallel group; the ranks of a group are contiguous."""
    return trainer.global_rank % tensor_parallel_size(trainer) == 0


def broadcast_in_tensor_parallel_group(value: Any, trainer: Trainer) -> Any:
    """Return the value of rank 0 of the tensor-parallel group on all ranks of the group."""
    if tensor_parallel_size(trainer) == 1:
        return value
    mesh, values = cast(ModelParallelStrategy, trainer.strategy).device_mesh["tensor_parallel"], [value]
    dist.broadcast_object_list(values, group=mesh.get_group(), group_src=0)
    return values[0]


def loss_scale(trainer: Trainer) -> int:
    """Return the factor that undoes the averaging of gradients over micro-batches and data-parallel ranks.

    The objective is normalized by the totals of the full optimizer step, so the gradients of micro-batches must be
    summed. Lightning divides the loss by the number of micro-batches, and the gradient reduction divides by the number
    of data-parallel ranks.
    """
    return data_parallel_size(trainer) * trainer.accumulate_grad_batches


def summed_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """Return the sum of the tensors over all data-parallel ranks, on every rank and on the CPU."""
    if trainer.world_size == 1:
        return values
    mine = values if is_tensor_parallel_leader(trainer) else torch.zeros_like(values)
    reduced = trainer.strategy.reduce(mine.to(trainer.strategy.root_device), reduce_op="sum")
    return torch.as_tensor(reduced).cpu()


def gathered_values(value: Any, trainer: Trainer) -> list[Any]:
    """Return the values of all data-parallel ranks, in rank order, on every rank; values are pickled."""
    if trainer.world_size == 1:
        return [value]
    gathered = [None] * trainer.world_size
    dist.all_gather_object(gathered, value)
    return gathered[:: tensor_parallel_size(trainer)]


def gathered_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """Return the rows of all data-parallel ranks, concatenated in rank order, on every rank and on the CPU."""
    if trainer.world_size == 1:
        return values
    gathered = trainer.strategy.all_gather(values.to(trainer.strategy.root_device))
    return rearrange(gathered[:: tensor_parallel_size(trainer)], "rank batch ... -> (rank batch) ...").cpu()
