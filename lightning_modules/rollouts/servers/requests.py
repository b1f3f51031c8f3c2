"""Requests for completions and log-probabilities to a vLLM server, and parsing of its responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.rollouts.base import Completions, SamplingParameters
from lightning_modules.rollouts.servers.client import ServerFailure, ServerRefusal
from lightning_modules.rollouts.vllm_sampling import copies, vllm_sampling

Choices = list[dict[str, Any]]


@dataclass(frozen=True)
class Completion:
    """One completion, with NaN for missing log-probabilities."""

    token_ids: list[int]
    log_probs: list[float]
    finished: bool


def completion_request(prompt: Sequence[int], sampling: SamplingParameters, seed: int) -> dict[str, Any]:
    """Return a request for the completions of one prompt.

    A request with several prompts would sample completion i of each with the same random numbers.
    """
    tokens = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return {"prompt": list(prompt), **vllm_sampling(sampling, seed), **tokens}


def parsed_completions(url: str, choices: Choices, sampling: SamplingParameters) -> list[Completion]:
    """Return the completions of one prompt.

    Raises:
        ServerFailure: the response does not match the request.
        ServerRefusal: the server truncated a completion early for lack of room.
    """
    expected = sampling.samples_per_prompt // copies(sampling)
    if [choice.get("index") for choice in choices] != list(range(expected)):
        raise ServerFailure(f"{url} answered with {len(choices)} completions instead of {expected}")
    try:
        completions = [_parsed_completion(url, choice, sampling) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailure(f"{url} answered with a malformed completion ({error})") from None
    return completions * copies(sampling)


def _parsed_completion(url: str, choice: dict[str, Any], sampling: SamplingParameters) -> Completion:
    token_ids, longest = choice["token_ids"], sampling.max_completion_length
    if not token_ids or len(token_ids) > longest or not all(type(token) is int for token in token_ids):
        raise ValueError(f"token ids {str(token_ids)[:80]}")
    finished = token_ids[-1] in sampling.stop_token_ids
    if not finished and len(token_ids) < longest:
        if choice.get("finish_reason") == "length":  # vLLM lowers `max_tokens` to the room after the prompt
            raise ServerRefusal(
                f"{url} truncated a completion after {len(token_ids)} of {longest} tokens; start it with a higher "
                "--max-model-len, or lower `max_completion_length`."
            )
        raise ValueError(f"it ended early, by {choice.get('finish_reason')!r}")
    log_probs = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(token_ids)
    if len(log_probs) != len(token_ids):
        raise ValueError(f"{len(log_probs)} log-probabilities for {len(token_ids)} tokens")
    return Completion(token_ids, [math.nan if value is None else float(value) for value in log_probs], finished)


def scoring_request(token_ids: Sequence[int]) -> dict[str, Any]:
    """Return a request for the log-probabilities of the tokens of a prompt."""
    return {"prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def parsed_scores(url: str, choices: Choices, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of all tokens of a prompt but the first.

    Raises:
        ServerFailure: log-probabilities are missing.
    """
    try:
        entries = choices[0]["prompt_logprobs"][1:]
        return [float(entry[str(token)]["logprob"]) for entry, token in zip(entries, token_ids[1:], strict=True)]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ServerFailure(f"{url} answered without log-probabilities of the prompt ({error!r})") from None


def collected(completions: Sequence[Completion]) -> Completions:
    """Return completions as tensors, padded on the right."""
    columns = {
        "token_ids": [torch.tensor(completion.token_ids) for completion in completions],
        "mask": [torch.ones(len(completion.token_ids), dtype=torch.bool) for completion in completions],
        "log_probs": [torch.tensor(completion.log_probs, dtype=torch.float32) for completion in completions],
    }
    padded = {name: pad_sequence(rows, batch_first=True) for name, rows in columns.items()}
    return Completions(finished=torch.tensor([completion.finished for completion in completions]), **padded)
