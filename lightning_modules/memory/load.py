"""Workload for which a rollout engine estimates its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_modules.memory.fake import Description


@dataclass(frozen=True)
class SamplingLoad:
    """Completions that one device samples in a rollout, all of them as long as the longest.

    Args:
        description: Policy that is sampled from, without its weights.
        parameters: Number of parameters of the policy, with any adapters merged.
        computation_dtype: Dtype in which the trainer multiplies matrices.
        prompts: Number of prompts that one device samples for a rollout.
        samples_per_prompt: Number of completions of each prompt.
        prompt_length: Number of tokens of a prompt.
        completion_length: Number of tokens of a completion.
        on_gpu: Whether the devices are GPUs.
        device_memory: Memory of one device in bytes.
    """

    description: Description
    parameters: int
    computation_dtype: torch.dtype
    prompts: int
    samples_per_prompt: int
    prompt_length: int
    completion_length: int
    on_gpu: bool
    device_memory: int

    @property
    def completions(self) -> int:
        """Number of completions that one device samples for a rollout."""
        return self.prompts * self.samples_per_prompt

    @property
    def length(self) -> int:
        """Number of tokens of a prompt and its completion."""
        return self.prompt_length + self.completion_length

    @property
    def context_length(self) -> int | None:
        """Context length of the model in tokens; None if its configuration does not state one."""
        return getattr(self.description.config.get_text_config(), "max_position_embeddings", None)
