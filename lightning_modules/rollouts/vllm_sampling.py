"""Sampling parameters of vLLM, in the training process and over HTTP."""

from __future__ import annotations

from typing import Any

from lightning_modules.rollouts.base import SamplingParameters

MIN_TEMPERATURE = 0.01  # vLLM raises lower temperatures to this one


def require_temperature(temperature: float) -> None:
    """Refuse a temperature that vLLM would change.

    Raises:
        ValueError: the temperature is positive, but below the minimum of vLLM.
    """
    if 0 < temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"`temperature` is {temperature}, which vLLM would raise to {MIN_TEMPERATURE}; pass 0 for the most likely "
            f"token, or {MIN_TEMPERATURE} or more."
        )


def vllm_sampling(sampling: SamplingParameters, seed: int) -> dict[str, Any]:
    """Return the sampling parameters of vLLM for one prompt; a greedy completion is requested once."""
    greedy = sampling.temperature == 0
    return {
        "n": 1 if greedy else sampling.samples_per_prompt,
        "temperature": sampling.temperature,
        # vLLM adds the index of the completion, so seeds of prompts must be far apart, and the sum must fit 64 bits.
        "seed": None if greedy else seed % 2**62,
        "max_tokens": sampling.max_completion_length,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # only `stop_token_ids` end a completion, not those of the model's configuration
        "logprobs": 0,
        "top_p": 1.0 if greedy else sampling.top_p,
        # Explicit, because a server may load other defaults from the folder of its model.
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def copies(sampling: SamplingParameters) -> int:
    """Return how often each completion of vLLM is repeated; one greedy completion stands for all of its prompt."""
    return sampling.samples_per_prompt if sampling.temperature == 0 else 1
