"""Options and environment of a vLLM engine in the training process, as functions of the arguments of `VLLM`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import transformers
from transformers import PreTrainedModel

from lightning_modules.rollouts.isolation import free_port

EngineDtype = Literal["auto", "float32", "bfloat16", "float16"]

CPU_CACHE_BYTES = 2**30
# Environment variables that vLLM sets for processes of its own, and that would reach the trainer's.
LEAKING_VARIABLES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "LOCAL_WORLD_SIZE")

_FIXED_OPTIONS = {
    # The weights follow in memory, by the way of every later transfer; the folder describes the model alone.
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "trust_remote_code": False,
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",
}
_OPTIONS_OF_ARGUMENTS = (
    *("model", "gpu_memory_utilization", "tensor_parallel_size", "max_model_len", "max_num_seqs", "dtype"),
    *("enforce_eager", "enable_sleep_mode", "distributed_executor_backend"),
)


def require_arguments(
    gpu_memory_utilization: float, dtype: EngineDtype, engine_options: Mapping[str, Any], **sizes: int | None
) -> None:
    """Refuse arguments that are out of range.

    Raises:
        ValueError: one is, or an option is set by `VLLM`.
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise ValueError(f"`gpu_memory_utilization` is {gpu_memory_utilization}; pass a share, from 0 to 1.")
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"`{name}` is {size}; pass 1 or more.")
    if dtype not in get_args(EngineDtype):
        raise ValueError(f"`dtype` is {dtype!r}; pass one of {', '.join(get_args(EngineDtype))}.")
    for name in engine_options:
        if name in _FIXED_OPTIONS or name in _OPTIONS_OF_ARGUMENTS:
            raise ValueError(f"`engine_options` has {name!r}, which VLLM sets by itself; see its own arguments.")


def llm_options(device: torch.device, dtype: torch.dtype, eager: bool, sleep: bool, **others: Any) -> dict[str, Any]:
    """Return arguments of `vllm.LLM` for an engine on the device of the trainer.

    Args:
        device: of the trainer.
        dtype: of the engine.
        eager: whether it runs without compilation.
        sleep: whether it gives its memory back between rollouts.
        others: further arguments, which come last.
    """
    return {
        **_FIXED_OPTIONS,
        "dtype": str(dtype).removeprefix("torch."),
        "enforce_eager": eager,
        "enable_sleep_mode": sleep and device.type == "cuda",
        "distributed_executor_backend": "external_launcher" if is_told_its_place(device) else None,
        **({"kv_cache_memory_bytes": CPU_CACHE_BYTES} if device.type == "cpu" else {}),
        **others,
    }


def engine_dtype(dtype: EngineDtype, model: PreTrainedModel) -> torch.dtype:
    """Return the precision of the engine: the trainer's where it is "auto", float32 for float64."""
    if dtype != "auto":
        return getattr(torch, dtype)
    device = model.device.type
    computed_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return torch.float32 if computed_in == torch.float64 else computed_in


def is_eager(enforce_eager: bool | None, device: torch.device) -> bool:
    """Whether the engine runs without compilation: on the CPU alone, unless told."""
    return device.type == "cpu" if enforce_eager is None else enforce_eager


def compilation(eager: bool) -> AbstractContextManager[None]:
    """Also keep vLLM's sampler from being compiled, which takes a compiler and seconds."""
    return torch.compiler.set_stance("force_eager" if eager else "default")


def is_told_its_place(device: torch.device) -> bool:
    """Whether vLLM must be told where it runs; by itself it is rank 0 and takes the first GPU."""
    return dist.is_initialized() or bool(device.index)


def environment(device: torch.device) -> dict[str, str]:
    """Return environment variables that hold while the engine starts."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if not is_told_its_place(device):
        return variables
    # What torchrun sets, and Lightning's own launcher in part.
    variables["LOCAL_RANK"] = str(device.index or 0)
    if dist.is_initialized():
        return {**variables, "RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return {**variables, **alone}


def engine_config(model: PreTrainedModel) -> Any:
    """Return the configuration of the model, with the name of its architecture."""
    config = copy.deepcopy(model.config)
    # A sharded model's class, or a user's, derives from the library's; a `PeftModel` has it inside.
    inner = getattr(model, "get_base_model", lambda: model)()
    known = (base.__name__ for base in type(inner).__mro__ if hasattr(transformers, base.__name__))
    config.architectures = [next(known)]
    return config
