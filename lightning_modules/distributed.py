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


def data_rank(trainer: Trainer) -> int:
    """Number of this rank's share of the data, from 0; ranks that divide tensors among them have the same one."""
    return (trainer.distributed_sampler_kwargs or {"rank": 0})["rank"]


def number_of_data_ranks(trainer: Trainer) -> int:
    """How many shares there are."""
    return (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]


def is_first_partner(trainer: Trainer) -> bool:
    """Whether this rank is the first of those that divide tensors among them, which follow one another."""
    return trainer.global_rank % _number_of_partners(trainer) == 0


def _number_of_partners(trainer: Trainer) -> int:
    return trainer.world_size // number_of_data_ranks(trainer)


def agreed_among_partners(value: Any, trainer: Trainer) -> Any:
    """The same value on all ranks that divide tensors among them: that of the first."""
    if _number_of_partners(trainer) == 1:
        return value
    mesh, values = cast(ModelParallelStrategy, trainer.strategy).device_mesh["tensor_parallel"], [value]
    dist.broadcast_object_list(values, group=mesh.get_group(), group_src=0)
    return values[0]


def loss_scale(trainer: Trainer) -> int:
    """What Lightning and the gradient reduction divide a loss by.

    The objective is normalised by totals of the whole optimiser step, so the gradients of its pieces must add up:
    accumulation divides by the number of micro-batches and data parallelism by the number of shares of the data.
    """
    return number_of_data_ranks(trainer) * trainer.accumulate_grad_batches


def summed_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """The sum of the tensors of all shares of the data, on every rank and on the CPU."""
    if trainer.world_size == 1:
        return values
    mine = values if is_first_partner(trainer) else torch.zeros_like(values)
    reduced = trainer.strategy.reduce(mine.to(trainer.strategy.root_device), reduce_op="sum")
    return torch.as_tensor(reduced).cpu()


def gathered_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """The rows of all shares of the data, one after the other, on every rank and on the CPU; their shapes are equal."""
    if trainer.world_size == 1:
        return values
    gathered = trainer.strategy.all_gather(values.to(trainer.strategy.root_device))
    return rearrange(gathered[:: _number_of_partners(trainer)], "rank batch ... -> (rank batch) ...").cpu()
