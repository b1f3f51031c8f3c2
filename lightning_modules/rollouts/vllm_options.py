"""Options and environment variables of an in-process vLLM engine, from the arguments of `VLLM`."""

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
# Environment variables that vLLM sets for its own processes, and that would affect those of the trainer.
LEAKING_VARIABLES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "LOCAL_WORLD_SIZE")

_FIXED_OPTIONS = {
    # The weights are transferred in memory, as after every update; the folder only provides the configuration.
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
    """Check the arguments of `VLLM`.

    Raises:
        ValueError: an argument is out of its range, or an engine option is one that `VLLM` sets.
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
            raise ValueError(f"`engine_options` has {name!r}, which VLLM sets itself; see its own arguments.")


def llm_options(device: torch.device, dtype: torch.dtype, eager: bool, sleep: bool, **others: Any) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for an engine on the device of the trainer.

    Args:
        device: device of the trainer.
        dtype: dtype of the engine.
        eager: whether to run without compilation.
        sleep: whether to release memory between rollouts.
        others: further arguments, which take precedence.
    """
    return {
        **_FIXED_OPTIONS,
        "dtype": str(dtype).removeprefix("torch."),
        "enforce_eager": eager,
        "enable_sleep_mode": sleep and device.type == "cuda",
        "distributed_executor_backend": "external_launcher" if needs_explicit_rank(device) else None,
        **({"kv_cache_memory_bytes": CPU_CACHE_BYTES} if device.type == "cpu" else {}),
        **others,
    }


def engine_dtype(dtype: EngineDtype, model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of the engine; "auto" is that of the trainer, with float32 in place of float64."""
    if dtype != "auto":
        return getattr(torch, dtype)
    device = model.device.type
    trainer_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return torch.float32 if trainer_dtype == torch.float64 else trainer_dtype


def is_eager(enforce_eager: bool | None, device: torch.device) -> bool:
    """Return whether the engine runs without compilation; by default it does on the CPU only."""
    return device.type == "cpu" if enforce_eager is None else enforce_eager


def compilation(eager: bool) -> AbstractContextManager[None]:
    """Return a context that disables compilation for an eager engine; vLLM would still compile its sampler."""
    return torch.compiler.set_stance("force_eager" if eager else "default")


def needs_explicit_rank(device: torch.device) -> bool:
    """Return whether vLLM needs an explicit rank; by default it is rank 0 on the first GPU."""
    return dist.is_initialized() or bool(device.index)


def environment(device: torch.device) -> dict[str, str]:
    """Return the environment variables for the start of the engine."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if not needs_explicit_rank(device):
        return variables
    # The variables that torchrun sets, and Lightning's own launcher in part.
    variables["LOCAL_RANK"] = str(device.index or 0)
    if dist.is_initialized():
        return {**variables, "RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    single = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return {**variables, **single}


def engine_config(model: PreTrainedModel) -> Any:
    """Return the configuration of the model with the name of its architecture."""
    config = copy.deepcopy(model.config)
    # The class of a sharded model, or of a user, is a subclass of one in transformers; a `PeftModel` wraps one.
    inner = getattr(model, "get_base_model", lambda: model)()
    known = (base.__name__ for base in type(inner).__mro__ if hasattr(transformers, base.__name__))
    config.architectures = [next(known)]
    return config
