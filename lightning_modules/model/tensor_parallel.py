"""Tensor parallelism: the layers of a model are sharded over ranks that process the same data."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel


def parallelize(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard the layers in transformers' tensor-parallel plan of the architecture; replicate all other layers.

    Embedding and output layer are always replicated: they may be tied, and log-probabilities are computed from the
    weight of the output layer.

    Args:
        model: a model of transformers with a tensor-parallel plan.
        mesh: device mesh of the tensor-parallel group.

    Raises:
        ValueError: there is no plan, or it has a style that is not supported or a layer that does not split evenly.
    """
    _check_heads(model, mesh.size())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    plan = model.tp_plan
    # Innermost first, so that an outer module only sees parameters that no inner one has claimed.
    for name, module in reversed(list(model.named_modules())):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if module in (head, embedding):
            _STYLES[None](module, mesh)
            continue
        style = plan.get(_pattern(name))
        if style not in _STYLES or (style is None and _may_depend_on_shards(model, name, module)):
            raise ValueError(
                f"`tensor_parallel_size` is {mesh.size()}, but transformers shards {name} of {type(model).__name__} "
                f"by {style!r}, which is not supported; pass tensor_parallel_size=1."
            )
        _check_divisible(name, module, style, mesh.size())
        _STYLES[style](module, mesh)
    if tied:
        head.weight = embedding.weight
    # FSDP2, which may wrap the model, warns about outputs that are views.
    head.register_forward_hook(lambda module, inputs, output: output.clone())


def broadcast_sampled_tokens(tokens: Tensor, model: PreTrainedModel) -> Tensor:
    """Return the sampled tokens of rank 0 of the model's tensor-parallel group, if it has one.

    Rounding may differ between ranks, and with it the sampled token; all ranks must continue with the same one.
    """
    mesh = getattr(next(model.parameters()), "device_mesh", None)
    if mesh is not None and _MESH_DIMENSION in (mesh.mesh_dim_names or ()):
        dist.broadcast(tokens, group=mesh[_MESH_DIMENSION].get_group(), group_src=0)
    return tokens


def _pattern(name: str) -> str:
    """Return the name of a layer as plans spell it, with a star for each number."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _may_depend_on_shards(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Return whether a layer outside the plan may compute with shards, so that replicating it could be wrong.

    It may if it is next to a column-wise sharded layer, contains other layers, or has parameters in the plan.
    """
    plan, parent = model.tp_plan, _pattern(name).rpartition(".")[0]
    return (
        any(style == "colwise" and other.rpartition(".")[0] == parent for other, style in plan.items())
        or any(True for child in module.children() for _ in child.parameters())
        or any(_pattern(f"{name}.{parameter}") in plan for parameter, _ in module.named_parameters(recurse=False))
    )


def _check_divisible(name: str, module: nn.Module, style: str | None, ranks: int) -> None:
    if not isinstance(module, nn.Linear) or style is None:
        return
    side = "out_features" if style.startswith("colwise") else "in_features"
    if getattr(module, side) % ranks:
        raise ValueError(
            f"`tensor_parallel_size` is {ranks}, which does not divide the {getattr(module, side)} `{side}` of {name}; "
            "pass a divisor."
        )


def _check_heads(model: PreTrainedModel, ranks: int) -> None:
    config = model.config.get_text_config()
    if not any("*" in name for name in model.tp_plan):  # the number of a decoder block
        raise ValueError(
            f"`tensor_parallel_size` is {ranks}, but transformers has no tensor-parallel plan of "
            f"{type(model).__name__}; pass tensor_parallel_size=1."
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or config.num_attention_heads
        if heads % ranks:
            raise ValueError(
                f"`tensor_parallel_size` is {ranks}, which does not divide the {heads} `{name}` of "
                f"{type(model).__name__}; pass a divisor."
            )


def _replicate(module: nn.Module, mesh: DeviceMesh, layout: Placement) -> None:
    """Replicate a layer on every rank; its inputs have the given placement, and so do its outputs."""
    # The return values of the hooks replace inputs and outputs, although they are annotated as None.
    distribute_module(module, mesh, None, cast(Any, partial(_distributed, layout)), cast(Any, _local))


def _distributed(layout: Placement, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return DTensor.from_local(inputs[0], mesh, [layout], run_check=False), *inputs[1:]


def _local(module: nn.Module, output: Tensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local() if isinstance(output, DTensor) else output


def _parallelized_by(style: Any) -> Callable[[nn.Module, DeviceMesh], Any]:
    return lambda module, mesh: parallelize_module(module, mesh, style)


_MESH_DIMENSION = "tensor_parallel"  # of the mesh that Lightning creates
# By the name of the style in transformers' plans.
_STYLES: dict[str | None, Callable[[nn.Module, DeviceMesh], Any]] = {
    None: partial(_replicate, layout=Replicate()),
    # Applied to sharded heads, so each rank has a partial gradient. Any dimension works: only the reduction matters.
    "replicated_with_grad_allreduce": partial(_replicate, layout=Shard(1)),
    "colwise": _parallelized_by(ColwiseParallel()),
    "colwise_gather_output": _parallelized_by(ColwiseParallel(output_layouts=Replicate())),
    "rowwise": _parallelized_by(RowwiseParallel()),
    "rowwise_split_input": _parallelized_by(RowwiseParallel(input_layouts=Replicate())),
}
