"""Memory plan of a job, from the module, the data and the settings of the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from lightning_modules.batch import Sequences
from lightning_modules.data.micro_batches import UpdatePlan, require_division
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.memory import Description, EngineMemory, SamplingLoad
from lightning_modules.planning.memory_plan import (
    MemoryPlan,
    ModelSizes,
    OptimizerSizes,
    PassSizes,
    memory_plan,
)
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.planning.source import described, longest_prompt
from lightning_modules.planning.traces import PassShape, model_sizes, optimizer_sizes, pass_sizes, scoring_size
from lightning_modules.planning.trial import tried_out
from lightning_modules.policy_module import PolicyModule

_Size = TypeVar("_Size")


@dataclass(frozen=True)
class JobPlan:
    """Memory plan with the counts that it is derived from.

    Args:
        memory: the plan.
        model: sizes of the model.
        architecture: name of its class.
        settings: the trainer's settings.
        micro_batch: shape of the largest micro-batch.
        completions: number of completions of a rollout, over all devices.
        updates: optimizer steps that a rollout is divided into.
        prompt_length_from: source of the prompt length, in words.
        layout: name of the sequence layout.
        layout_from: source of the layout, in words.
        engine: the rollout engine's part.
        device_memory: bytes of a device, and how they are known.
        unknown: parts that could not be counted, each with the reason.
    """

    memory: MemoryPlan
    model: ModelSizes
    architecture: str
    settings: TrainerSettings
    micro_batch: PassShape
    completions: int
    updates: int
    prompt_length_from: str
    layout: str
    layout_from: str
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
    """Plan the memory of a training run without loading weights; the module then has a model on the meta device.

    Args:
        module: the module that is trained.
        data: the data module.
        settings: the trainer's settings.
        prompt_length: tokens of the longest prompt; found by the tokenizer when None.
        device_memory: GiB of one device.

    Raises:
        ValueError: the model is not found, the rollout does not divide, or a number is out of its range.
    """
    _require_positive(prompt_length, device_memory)
    job, origin, tried = _job(module, data, settings, prompt_length)
    module.model = job.description.model()
    sizes = model_sizes(module.model, settings.autocast if job.passing == job.description else None)
    shape, device = job.largest_micro_batch(), settings.device_memory(device_memory)
    unknown: list[str] = []
    optimizer = _or_unknown("the optimizer", OptimizerSizes(0, 0), unknown, job.optimizer)
    passes = _or_unknown("activations and loss head", PassSizes(0, 0), unknown, lambda: job.passes(shape))
    load = job.sampling_load(sizes, device[0])
    engine = _or_unknown("the rollout engine", EngineMemory(), unknown, lambda: data.rollouts.memory(load))
    return JobPlan(
        memory=memory_plan(sizes, optimizer, passes, settings.sharding, job.reference(sizes), engine),
        model=sizes,
        architecture=type(module.model).__name__,
        settings=settings,
        micro_batch=shape,
        completions=data.prompts_per_rollout * data.group_size,
        updates=data.updates_per_rollout,
        prompt_length_from=origin,
        layout=type(job.description.layout).__name__,
        layout_from=tried,
        engine=engine,
        device_memory=device,
        unknown=tuple(unknown),
    )


def _require_positive(prompt_length: int | None, device_memory: float | None) -> None:
    if prompt_length is not None and prompt_length < 1:
        raise ValueError(f"`prompt_length` is {prompt_length}; pass 1 or more tokens.")
    if device_memory is not None and not 0 < device_memory < math.inf:
        raise ValueError(f"`device_memory` is {device_memory}; pass a positive number of GiB.")


def _job(
    module: PolicyModule, data: RolloutDataModule, settings: TrainerSettings, prompt_length: int | None
) -> tuple[_Job, str, str]:
    """Return the job, and the origins of its prompt length and of its layout in words."""
    policy = module.policy
    config, tokenizer = described(policy.source)
    layout, tried = tried_out(policy, config, data.rollouts.try_policy, settings)
    updates = data.update_plan(layout, settings.accumulate_grad_batches)
    require_division(data.prompts_per_rollout, data.group_size, settings.sharding.ranks, updates)
    description = Description(config, settings.weights_dtype, policy.lora, layout, settings.forward_context)
    longest, origin = longest_prompt(data, tokenizer) if prompt_length is None else (prompt_length, "as given")
    return _Job(module, data, settings, updates, description, longest), origin, tried


@dataclass(frozen=True)
class _Job:
    """Training run with a description of its policy.

    Args:
        module: the module that is trained.
        data: the data module.
        settings: the trainer's settings.
        updates: split of a rollout into updates and micro-batches.
        description: the policy without its weights, in the type in which they are kept.
        prompt_length: tokens of the longest prompt.
    """

    module: PolicyModule
    data: RolloutDataModule
    settings: TrainerSettings
    updates: UpdatePlan
    description: Description
    prompt_length: int

    @property
    def passing(self) -> Description:
        """Description of the policy with the dtype that the weights have in a forward pass."""
        return replace(self.description, dtype=self.settings.passing_dtype)

    @property
    def keeps_reference(self) -> bool:
        """Whether log-probabilities under a reference are computed."""
        return self.module.policy.keeps_reference or self.data.needs_reference

    def reference(self, sizes: ModelSizes) -> int:
        """Return the bytes of a reference model; with adapters, the model without them is the reference."""
        return sizes.weights if self.keeps_reference and self.description.lora is None else 0

    def largest_micro_batch(self) -> PassShape:
        """Return the largest micro-batch of an update whose prompts and completions are all as long as the longest."""
        prompts = self.data.prompts_per_rollout // (self.settings.sharding.ranks * self.updates.updates)
        completions, longest = prompts * self.data.group_size, self.data.max_completion_length
        token, tokens = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
        update = Sequences(
            prompt_ids=token.expand(prompts, self.prompt_length),
            prompt_mask=tokens.expand(prompts, self.prompt_length),
            prompt_of=torch.arange(completions) // self.data.group_size,
            completion_ids=token.expand(completions, longest),
            completion_mask=tokens.expand(completions, longest),
        )
        shapes = [
            PassShape(len(update.prompt_of[rows].unique()), len(rows), self.prompt_length, longest)
            for rows in self.updates.rows(update, torch.arange(completions), self.updates.micro_batches)
            if len(rows)
        ]
        return max(shapes, key=lambda shape: self.updates.layout.size(shape.extent))

    def optimizer(self) -> OptimizerSizes:
        """Return the sizes of the module's optimizer."""
        fused = self.module.fuses_steps(self.settings.precision)
        return optimizer_sizes(self.module.model, self.module.new_optimizer(), self.settings.on_gpu, fused)

    def passes(self, shape: PassShape) -> PassSizes:
        """Return the sizes of the passes over a micro-batch."""
        passes = pass_sizes(self.passing, shape, gradients_kept=self.settings.accumulate_grad_batches > 1)
        scores = self.keeps_reference or self.data.old_log_probs == "trainer"
        return replace(passes, scoring=scoring_size(self.passing, shape)) if scores else passes

    def sampling_load(self, sizes: ModelSizes, device_memory: int) -> SamplingLoad:
        """Return the part of a rollout that one device samples."""
        adapters = sizes.trained_parameters if self.description.lora is not None else 0
        return SamplingLoad(
            description=self.passing,
            parameters=sizes.parameters - adapters,
            computation_dtype=self.settings.computation_dtype,
            prompts=self.data.prompts_per_rollout // self.settings.sharding.ranks,
            samples_per_prompt=self.data.group_size,
            prompt_length=self.prompt_length,
            completion_length=self.data.max_completion_length,
            on_gpu=self.settings.on_gpu,
            device_memory=device_memory,
        )


def _or_unknown(name: str, nothing: _Size, unknown: list[str], found: Callable[[], _Size]) -> _Size:
    """Return the result, or `nothing` with a note: a model or an optimizer may read data, which fake tensors lack."""
    try:
        return found()
    except Exception as error:
        unknown.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return nothing
