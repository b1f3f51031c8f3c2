"""The work for which a rollout engine says what memory it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_modules.memory.fake import Description


@dataclass(frozen=True)
class SamplingLoad:
    """Completions that one device samples in a rollout, all of them as long as the longest.

    Args:
        description: the policy that is sampled from, without its weights.
        parameters: number of its parameters, any adapters merged into them.
        computation_dtype: type in which the trainer multiplies matrices.
        prompts: number of prompts that one device samples for a rollout.
        samples_per_prompt: completions of each prompt.
        prompt_length: tokens.
        completion_length: tokens.
        on_gpu: whether the devices are GPUs.
        device_memory: bytes of one device.
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
        """Number of completions of one device's rollout."""
        return self.prompts * self.samples_per_prompt

    @property
    def length(self) -> int:
        """Tokens of a prompt and its completion."""
        return self.prompt_length + self.completion_length

    @property
    def context_length(self) -> int | None:
        """Tokens that the model has positions for; None where its configuration does not say."""
        return getattr(self.description.config.get_text_config(), "max_position_embeddings", None)
