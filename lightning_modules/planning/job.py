"""From a parsed configuration to a memory plan and what else there is to say of the job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_modules.batch import Sequences
from lightning_modules.data.micro_batches import UpdatePlan, require_division
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.data.sampler import tokenized
from lightning_modules.memory import Description, EngineMemory, SamplingLoad
from lightning_modules.planning.memory_plan import (
    MemoryPlan,
    ModelSizes,
    OptimizerSizes,
    PassSizes,
    memory_plan,
)
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.planning.traces import (
    PassShape,
    model_sizes,
    optimizer_sizes,
    pass_sizes,
    scoring_size,
)
from lightning_modules.policy_module import PolicyModule

_PROMPTS_READ = 1024
_ASSUMED_PROMPT = 512


@dataclass(frozen=True)
class JobPlan:
    """A memory plan with the counts that it follows from.

    Args:
        memory: the plan.
        model: sizes of the model.
        architecture: name of its class.
        settings: of the trainer.
        micro_batch: its shape.
        completions: of a rollout, over all devices.
        updates: optimiser steps that a rollout is divided into.
        prompt_length_from: how the length of the prompts is known.
        engine: the rollout engine's part.
        device_memory: bytes of a device, and how they are known.
        unknown: what could not be counted, and why.
    """

    memory: MemoryPlan
    model: ModelSizes
    architecture: str
    settings: TrainerSettings
    micro_batch: PassShape
    completions: int
    updates: int
    prompt_length_from: str
    engine: EngineMemory
    device_memory: tuple[int, str]
    unknown: tuple[str, ...]


def job_plan(
    module: PolicyModule,
    data: RolloutDataModule,
    settings: TrainerSettings,
    prompt_length: int | None = None,
    device_memory: float | None = None,
) -> JobPlan:
    """The plan of a training; no weights are loaded, and the module's model is one on the meta device afterwards.

    Args:
        module: what is trained.
        data: its data.
        settings: of the trainer.
        prompt_length: tokens of the longest prompt; found by the tokenizer when None.
        device_memory: GiB of one device.

    Raises:
        ValueError: the model is not found, the rollout does not divide, or a number is out of its range.
    """
    if prompt_length is not None and prompt_length < 1:
        raise ValueError(f"`prompt_length` is {prompt_length}; pass 1 or more tokens.")
    if device_memory is not None and not device_memory > 0:
        raise ValueError(f"`device_memory` is {device_memory}; pass a positive number of GiB.")
    policy = module.policy
    plan = data.update_plan(policy.layout, settings.accumulate_grad_batches)
    require_division(data.prompts_per_rollout, data.group_size, settings.sharding.ranks, plan)
    keeps_reference = policy.keeps_reference or data.needs_reference
    config, tokenizer = _described(policy.source)
    description = Description(config, settings.weights_dtype, policy.lora, policy.layout, settings.forward_context)
    module.model = description.model()
    passing = replace(description, dtype=settings.passing_dtype)
    sizes = model_sizes(module.model, settings.autocast if passing == description else None)
    longest, origin = _prompt_length(data, tokenizer) if prompt_length is None else (prompt_length, "as given")
    completions = data.prompts_per_rollout * data.group_size
    shape = _largest_micro_batch(data, plan, settings.sharding.ranks, longest)
    unknown: list[str] = []
    optimizer = _or_unknown("the optimiser", OptimizerSizes(0, 0), unknown, lambda: _optimizer(module, settings))
    accumulates = settings.accumulate_grad_batches > 1
    scores = keeps_reference or data.old_log_probs == "trainer"
    passes = _or_unknown(
        "activations and loss head",
        PassSizes(0, 0),
        unknown,
        lambda: replace(
            pass_sizes(passing, shape, gradients_kept=accumulates),
            scoring=scoring_size(passing, shape) if scores else 0,
        ),
    )
    on_device = data.prompts_per_rollout // settings.sharding.ranks
    device = settings.device_memory(device_memory)
    load = SamplingLoad(
        description=passing,
        parameters=sizes.parameters - (sizes.trained_parameters if policy.lora is not None else 0),
        computation_dtype=settings.computation_dtype,
        prompts=on_device,
        samples_per_prompt=data.group_size,
        prompt_length=longest,
        completion_length=data.max_completion_length,
        on_gpu=settings.on_gpu,
        device_memory=device[0],
    )
    engine = _or_unknown("the rollout engine", EngineMemory(), unknown, lambda: data.rollouts.memory(load))
    return JobPlan(
        memory=memory_plan(
            sizes,
            optimizer,
            passes,
            settings.sharding,
            # Adapters are switched off for the reference.
            reference=sizes.weights if keeps_reference and policy.lora is None else 0,
            engine=engine,
        ),
        model=sizes,
        architecture=type(module.model).__name__,
        settings=settings,
        micro_batch=shape,
        completions=completions,
        updates=data.updates_per_rollout,
        prompt_length_from=origin,
        engine=engine,
        device_memory=device,
        unknown=tuple(unknown),
    )


def _largest_micro_batch(data: RolloutDataModule, plan: UpdatePlan, ranks: int, prompt_length: int) -> PassShape:
    """Return the largest micro-batch of an update whose prompts and completions are all as long as the longest."""
    prompts = data.prompts_per_rollout // (ranks * plan.updates)
    completions, longest = prompts * data.group_size, data.max_completion_length
    token, tokens = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    update = Sequences(
        prompt_ids=token.expand(prompts, prompt_length),
        prompt_mask=tokens.expand(prompts, prompt_length),
        prompt_of=torch.arange(completions) // data.group_size,
        completion_ids=token.expand(completions, longest),
        completion_mask=tokens.expand(completions, longest),
    )
    shapes = [
        PassShape(len(update.prompt_of[rows].unique()), len(rows), prompt_length, longest)
        for rows in plan.rows(update, torch.arange(completions), plan.micro_batches)
        if len(rows)
    ]
    return max(shapes, key=lambda shape: plan.layout.size(shape.extent))


def _or_unknown(name: str, nothing: Any, unknown: list[str], found: Any) -> Any:
    """What is found, or nothing with a note of why: a model or an optimiser may look into data, which is not there."""
    try:
        return found()
    except Exception as error:
        unknown.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return nothing


def _optimizer(module: PolicyModule, settings: TrainerSettings) -> OptimizerSizes:
    made = cast(dict[str, Any], module.configure_optimizers())["optimizer"]
    return optimizer_sizes(module.model, cast(torch.optim.Optimizer, made), settings.on_gpu)


def _described(model_name: Any) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None]:
    """Configuration of a model, and its tokenizer where there is one."""
    if not isinstance(model_name, str):
        describe = getattr(model_name, "describe", None)
        if describe is None:
            raise ValueError(
                f"`model_name` is {model_name!r}, which makes a model and has no `describe` to say which; call its "
                "`prepare()`, and pass the folder that it returns."
            )
        return cast(tuple[PreTrainedConfig, PreTrainedTokenizerBase], describe())
    try:
        config = AutoConfig.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`model_name` is {model_name!r}, whose config.json was not found or not understood ({reason}); pass a "
            "folder that holds one, or a hub id that can be reached from here."
        ) from None
    folder = Path(model_name)
    # From a configuration alone, the library would make a tokenizer without a vocabulary.
    if folder.is_dir() and not [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        return config, None
    try:
        return config, AutoTokenizer.from_pretrained(model_name)
    except (OSError, ValueError):
        return config, None


def _prompt_length(data: RolloutDataModule, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, str]:
    """Tokens of the longest prompt, and how they are known."""
    if tokenizer is not None:
        count = min(len(data.dataset), _PROMPTS_READ)
        lengths = [len(tokenized(tokenizer, data.dataset[index], data.chat_template)) for index in range(count)]
        return max(lengths), f"the longest of {'all' if count == len(data.dataset) else 'the first'} {count:,}"
    room = data.rollouts.max_model_length
    if room is not None and room > data.max_completion_length:
        return room - data.max_completion_length, "what `max_model_length` leaves; there is no tokenizer"
    return _ASSUMED_PROMPT, "assumed, there is no tokenizer; say --prompt_length TOKENS"
