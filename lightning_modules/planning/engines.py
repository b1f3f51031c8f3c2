"""Memory of the rollout engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_modules.memory import GIB, PHASES, CachePlan, Description, Entry, cached_numbers
from lightning_modules.planning.memory_plan import ModelSizes
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.planning.traces import PassShape, decoding_sizes
from lightning_modules.rollouts import VLLM, RolloutEngine, TransformersEngine, VLLMServers
from lightning_modules.rollouts.vllm import CPU_CACHE_BYTES


@dataclass(frozen=True)
class Drawing:
    """What one device draws in a rollout.

    Args:
        description: of the policy.
        model: its sizes.
        settings: of the trainer.
        shape: all prompts and completions of one device's rollout.
        group_size: completions per prompt.
        device_memory: bytes of one device.
    """

    description: Description
    model: ModelSizes
    settings: TrainerSettings
    shape: PassShape
    group_size: int
    device_memory: int


@dataclass(frozen=True)
class EnginePlan:
    """Entries of an engine, and a sentence about it."""

    entries: tuple[Entry, ...]
    sentence: str


def engine_plan(engine: RolloutEngine, drawing: Drawing) -> EnginePlan:
    """What an engine takes on each device that trains."""
    if isinstance(engine, TransformersEngine):
        return _transformers(engine, drawing)
    if isinstance(engine, VLLM):
        return _vllm(engine, drawing)
    name = type(engine).__name__
    if isinstance(engine, VLLMServers):
        return EnginePlan((), f"{name}: on devices of its own, of which a plan says nothing.")
    return EnginePlan((), f"{name}: unknown to a plan, so not counted.")


def _transformers(engine: TransformersEngine, drawing: Drawing) -> EnginePlan:
    shape = drawing.shape
    prompts = min(max(engine.max_sequences // drawing.group_size, 1), shape.prompts)
    drawn = PassShape(prompts, prompts * drawing.group_size, shape.prompt_length, shape.completion_length)
    sizes = decoding_sizes(drawing.description, drawn)
    remedy = "lower `max_sequences` of the TransformersEngine"
    entries = (
        Entry("rollout engine, keys and values", sizes.cache, ("rollout",), remedy),
        Entry("rollout engine, besides", sizes.peak - sizes.cache, ("rollout",), remedy),
    )
    drawn_at_once = f"{drawn.completions:,} completions at a time"
    return EnginePlan(entries, f"TransformersEngine: {drawn_at_once}, of {shape.completions:,} that a device draws.")


def _vllm(engine: VLLM, drawing: Drawing) -> EnginePlan:
    settings = drawing.settings
    dtype = getattr(torch, engine.dtype) if engine.dtype != "auto" else settings.computation_dtype
    dtype = torch.float32 if dtype == torch.float64 else dtype
    parts = engine.tensor_parallel_size
    # The engine has the weights with adapters merged into them.
    adapters = drawing.model.trained_parameters if drawing.description.lora is not None else 0
    weights = (drawing.model.parameters - adapters) * dtype.itemsize // parts
    config = drawing.description.config.get_text_config()
    longest = engine.max_model_length or getattr(config, "max_position_embeddings", 0)
    # vLLM's default on the CPU would be a share of the machine, so the engine names the size of the cache itself.
    share = int(engine.gpu_memory_utilization * drawing.device_memory) if settings.on_gpu else weights + CPU_CACHE_BYTES
    needed = drawing.shape.prompt_length + drawing.shape.completion_length
    cache = CachePlan(share, weights, cached_numbers(drawing.description) * dtype.itemsize // parts, longest or needed)
    sleeps = engine.sleep and settings.on_gpu
    entry = Entry(
        "rollout engine", share, ("rollout",) if sleeps else PHASES, "lower `gpu_memory_utilization` of the VLLM engine"
    )
    origin = f"{engine.gpu_memory_utilization:g} of a device" if settings.on_gpu else "a fixed cache on the CPU"
    sentence = (
        f"VLLM: {share / GIB:.2f} GiB ({origin}), of which weights {weights / GIB:.2f}; at most {cache.left / GIB:.2f} "
        f"left for keys and values: {cache.sequences:,} sequences of {cache.length:,} tokens at once, of "
        f"{engine.max_sequences:,} asked for."
    )
    if needed > cache.length:
        sentence += f" A prompt and its completion may take {needed:,} tokens: raise `max_model_length`."
    if cache.sequences < 1:
        sentence += " Not one fits: raise `gpu_memory_utilization`, or lower `max_model_length`."
    return EnginePlan((entry,), sentence)
