"""Memory that a vLLM engine in the training process takes, for `aggregate-po plan`."""

from __future__ import annotations

import torch

from lightning_modules.memory import PHASES, CachePlan, EngineMemory, Entry, SamplingLoad, cached_numbers
from lightning_modules.rollouts.vllm_options import CPU_CACHE_BYTES


def vllm_memory(
    load: SamplingLoad,
    dtype: torch.dtype,
    gpu_memory_utilization: float,
    tensor_parallel_size: int,
    max_model_length: int | None,
    max_sequences: int,
    sleep: bool,
) -> EngineMemory:
    """Return the memory of the engine on one device.

    Args:
        load: sampling load of one device.
        dtype: precision of the engine; float32 in place of float64.
        gpu_memory_utilization: argument of `VLLM`.
        tensor_parallel_size: argument of `VLLM`.
        max_model_length: argument of `VLLM`.
        max_sequences: argument of `VLLM`.
        sleep: argument of `VLLM`.
    """
    itemsize = min(dtype.itemsize, torch.float32.itemsize)
    weights = load.parameters * itemsize // tensor_parallel_size
    # vLLM's default on the CPU would be a share of the machine, so the engine names the size of the cache itself.
    share = int(gpu_memory_utilization * load.device_memory) if load.on_gpu else weights + CPU_CACHE_BYTES
    per_token = cached_numbers(load.description) * itemsize // tensor_parallel_size
    cache = CachePlan(share, weights, per_token, max_model_length or load.context_length or load.length)
    entry = Entry(
        "rollout engine",
        share,
        ("rollout",) if sleep and load.on_gpu else PHASES,
        "lower `gpu_memory_utilization` of the VLLM engine" if load.on_gpu else "",
    )
    origin = f"{gpu_memory_utilization:g} of a device" if load.on_gpu else "a fixed cache on the CPU"
    sentence = f"VLLM: {cache.told(origin, max_sequences)}"
    if load.length > cache.length:
        sentence += f" A prompt and its completion may take {load.length:,} tokens: raise `max_model_length`."
    if cache.sequences < 1:
        sentence += " Not one fits: raise `gpu_memory_utilization`, or lower `max_model_length`."
    return EngineMemory((entry,), sentence)
