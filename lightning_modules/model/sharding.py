"""Sharding of model weights over data-parallel ranks (FSDP2), and gathering of full tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(model: nn.Module, mesh: DeviceMesh, computation_dtype: torch.dtype | None = None) -> None:
    """Shard each block of a transformers model over the data-parallel ranks, and then the remaining parameters.

    The blocks are the modules that transformers never splits across devices. Embeddings, tied or not, are among the
    remaining parameters.

    Args:
        model: any causal language model of transformers.
        mesh: device mesh of all ranks.
        computation_dtype: dtype in which weights are gathered, for half the communication and memory in bfloat16;
            gradients are reduced in float32. Weights are gathered in their own dtype when None.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=computation_dtype, reduce_dtype=None if computation_dtype is None else torch.float32
    )
    for block in blocks(model):
        fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(model, mesh=mesh["data_parallel"], mp_policy=policy)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformers model, sharded or not."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    # FSDP2 replaces the class of a module by a subclass.
    return [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over data-parallel ranks."""
    return isinstance(model, FSDPModule)


def full_tensor(value: Tensor) -> Tensor:
    """Return the full tensor on every rank, gathered if it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the full weights of a sharded model on the CPU of rank 0, and an empty dictionary on the other ranks.

    Every rank must call it. Tied weights appear once, under their first name: the gathered copies no longer share
    memory, so they could not be recognized as tied.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    repeated = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: value for name, value in weights.items() if name not in repeated}


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the full weights on every rank within the context, for any number of forward passes without gradient.

    Outside of it a sharded model gathers its weights in each forward pass, so all ranks must make the same number of
    calls. Tensor-parallel layers stay sharded, so the ranks of a tensor-parallel group must still make the same calls.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not shards:
        yield
        return
    assert is_sharded(model)
    for module in shards:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)
