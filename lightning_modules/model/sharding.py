"""The weights of a model spread over the ranks (FSDP2), and gathered again."""

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
    """Spread each block of a transformers model over the data-parallel ranks, and then the rest of it.

    The blocks are those that transformers itself keeps in one piece; embeddings, tied or not, belong to the rest.

    Args:
        model: any of transformers.
        mesh: of all ranks.
        computation_dtype: in which weights are gathered, so that half as much is sent and held; gradients are added up
            in float32. As the weights are kept when None.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=computation_dtype, reduce_dtype=None if computation_dtype is None else torch.float32
    )
    for block in blocks(model):
        fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(model, mesh=mesh["data_parallel"], mp_policy=policy)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts that a transformers model repeats, sharded or not."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    # A sharded module has a class of its own, below the one that it had.
    return [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over ranks."""
    return isinstance(model, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """The tensor itself, gathered on every rank where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather the weights of a sharded model on the CPU of rank 0; empty on the others, which must call it too.

    Tied weights come once, under their first name, since the gathered copies no longer show that they are one.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    repeated = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: value for name, value in weights.items() if name not in repeated}


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every rank has the whole weights, and may call the model as often as it likes, outside any graph.

    A sharded model otherwise gathers its weights in each forward pass, so all ranks must make the same number of them.
    Ranks that divide layers among them (`tensor_parallel`) still have parts of these, and must make the same calls.
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
