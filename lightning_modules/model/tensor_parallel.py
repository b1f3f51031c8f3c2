"""Each layer of a model divided among ranks that work on the same data (tensor parallelism)."""

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


def divide(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide the layers that transformers' plan for the architecture names; all others are whole on every rank.

    So are embedding and output layer, which may be tied; log-probabilities are made from the latter's weight.

    Args:
        model: any of transformers that has a plan.
        mesh: of the ranks that share the work on each tensor.

    Raises:
        ValueError: there is no plan, or it has a layer that cannot be divided here or evenly.
    """
    _check_heads(model, mesh.size())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    plan = model.tp_plan
    # Inner modules first: what is left of an outer one is its own.
    for name, module in reversed(list(model.named_modules())):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if module in (head, embedding):
            _KINDS[None](module, mesh)
            continue
        kind = plan.get(_pattern(name))
        if kind not in _KINDS or (kind is None and _is_amid_parts(model, name, module)):
            raise ValueError(
                f"`tensor_parallel_size` is {mesh.size()}, but transformers divides {name} of {type(model).__name__} "
                f"by {kind!r}, which is not supported; pass tensor_parallel_size=1."
            )
        _check_divides(name, module, kind, mesh.size())
        _KINDS[kind](module, mesh)
    if tied:
        head.weight = embedding.weight
    # FSDP2, which may come on top, warns of a model that gives views.
    head.register_forward_hook(lambda module, inputs, output: output.clone())


def agreed_draw(tokens: Tensor, model: PreTrainedModel) -> Tensor:
    """Tokens that were drawn from a model, as the first of the ranks that divide it has them, if any do.

    Roundings may differ between ranks, and with them a draw; all must go on with the same one.
    """
    mesh = getattr(next(model.parameters()), "device_mesh", None)
    if mesh is not None and _DIMENSION in (mesh.mesh_dim_names or ()):
        dist.broadcast(tokens, group=mesh[_DIMENSION].get_group(), group_src=0)
    return tokens


def _pattern(name: str) -> str:
    """The name of a layer as a plan has it, with a star for each number."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _is_amid_parts(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Whether a layer that is in no plan may work on parts: beside divided ones, above others, or by its parameters."""
    plan, beside = model.tp_plan, _pattern(name).rpartition(".")[0]
    return (
        any(kind == "colwise" and other.rpartition(".")[0] == beside for other, kind in plan.items())
        or any(True for child in module.children() for _ in child.parameters())
        or any(_pattern(f"{name}.{parameter}") in plan for parameter, _ in module.named_parameters(recurse=False))
    )


def _check_divides(name: str, module: nn.Module, kind: str | None, ranks: int) -> None:
    if not isinstance(module, nn.Linear) or kind is None:
        return
    side = "out_features" if kind.startswith("colwise") else "in_features"
    if getattr(module, side) % ranks:
        raise ValueError(
            f"`tensor_parallel_size` is {ranks}, which does not divide the {getattr(module, side)} `{side}` of {name}; "
            "pass a divisor."
        )


def _check_heads(model: PreTrainedModel, ranks: int) -> None:
    config = model.config.get_text_config()
    if not any("*" in name for name in model.tp_plan):  # the number of a decoder block
        raise ValueError(
            f"`tensor_parallel_size` is {ranks}, but transformers has no plan to divide {type(model).__name__}; pass "
            "tensor_parallel_size=1."
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or config.num_attention_heads
        if heads % ranks:
            raise ValueError(
                f"`tensor_parallel_size` is {ranks}, which does not divide the {heads} `{name}` of "
                f"{type(model).__name__}; pass a divisor."
            )


def _whole(module: nn.Module, mesh: DeviceMesh, layout: Placement) -> None:
    """Keep a layer whole on every rank, for inputs of one layout, which is that of its outputs too."""
    # What the hooks return takes the place of inputs and outputs; its annotations say None.
    distribute_module(module, mesh, None, cast(Any, partial(_distributed, layout)), cast(Any, _local))


def _distributed(layout: Placement, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return DTensor.from_local(inputs[0], mesh, [layout], run_check=False), *inputs[1:]


def _local(module: nn.Module, output: Tensor, mesh: DeviceMesh) -> Tensor:
    return output.to_local() if isinstance(output, DTensor) else output


def _by(style: Any) -> Callable[[nn.Module, DeviceMesh], Any]:
    return lambda module, mesh: parallelize_module(module, mesh, style)


_DIMENSION = "tensor_parallel"  # of the mesh that Lightning makes
# What transformers calls the ways to divide a layer.
_KINDS: dict[str | None, Callable[[nn.Module, DeviceMesh], Any]] = {
    None: partial(_whole, layout=Replicate()),
    # On heads that are divided, so that each rank has a part of the gradient; which dimension they are is no matter.
    "replicated_with_grad_allreduce": partial(_whole, layout=Shard(1)),
    "colwise": _by(ColwiseParallel()),
    "colwise_gather_output": _by(ColwiseParallel(output_layouts=Replicate())),
    "rowwise": _by(RowwiseParallel()),
    "rowwise_split_input": _by(RowwiseParallel(input_layouts=Replicate())),
}
