"""Requests for completions and log-probabilities to a vLLM server, and parsing of its responses."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.rollouts.base import Completions, SamplingParameters
from lightning_modules.rollouts.servers.client import ServerFailure, printable
from lightning_modules.rollouts.vllm_sampling import copies, vllm_sampling

Choices = list[dict[str, Any]]

_ROUNDING = 1e-4  # nats; the logarithm of a probability of 1 may come out above 0
_LARGEST = torch.finfo(torch.float32).max  # nats; the precision in which completions are collected


@dataclass(frozen=True)
class Completion:
    """One completion, with the log-probabilities of its tokens."""

    token_ids: list[int]
    log_probs: list[float]
    finished: bool


def completion_request(prompt: Sequence[int], sampling: SamplingParameters, seed: int) -> dict[str, Any]:
    """Return a request for the completions of one prompt.

    A request with several prompts would sample completion i of each with the same random numbers.
    """
    tokens = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return {"prompt": list(prompt), **vllm_sampling(sampling, seed), **tokens}


def parsed_completions(url: str, choices: Choices, sampling: SamplingParameters, vocabulary: int) -> list[Completion]:
    """Return the completions of one prompt.

    Args:
        url: address of the server, for error messages.
        choices: the parts of the response, in their order.
        sampling: the parameters of the request.
        vocabulary: number of tokens that the policy has.

    Raises:
        ServerFailure: the response does not match the request, or has a value that no model returns.
    """
    expected = sampling.samples_per_prompt // copies(sampling)
    if [choice.get("index") for choice in choices] != list(range(expected)):
        raise ServerFailure(f"{url} answered with {len(choices)} completions instead of {expected}")
    try:
        completions = [_parsed_completion(choice, sampling, vocabulary) for choice in choices]
    except ValueError as error:
        raise ServerFailure(f"{url} answered with a malformed completion ({error})") from None
    return completions * copies(sampling)


def _parsed_completion(choice: dict[str, Any], sampling: SamplingParameters, vocabulary: int) -> Completion:
    token_ids, longest = choice.get("token_ids"), sampling.max_completion_length
    if not isinstance(token_ids, list) or not 0 < len(token_ids) <= longest:
        raise ValueError(f"`token_ids` is {_shown(token_ids)}, not a list of 1 to {longest} tokens")
    wrong = [token for token in token_ids if type(token) is not int or not 0 <= token < vocabulary]
    if wrong:
        raise ValueError(f"`token_ids` has {_shown(wrong[0])}, and the model has {vocabulary} tokens")
    stops, finished = sampling.stop_token_ids, token_ids[-1] in sampling.stop_token_ids
    reason = choice.get("finish_reason")
    if any(token in stops for token in token_ids[:-1]):
        raise ValueError("`token_ids` goes on after a stop token")
    if not finished and len(token_ids) < longest:
        # vLLM lowers `max_tokens` to the room after the prompt.
        advice = "; start it with a higher --max-model-len, or lower `max_completion_length`" * (reason == "length")
        raise ValueError(
            f"it ended early, after {len(token_ids)} of {longest} tokens, by `finish_reason` {_shown(reason)}{advice}"
        )
    if reason != ("stop" if finished else "length"):
        raise ValueError(f"`finish_reason` is {_shown(reason)}, after the token {token_ids[-1]}")
    return Completion(token_ids, _parsed_log_probs(choice.get("logprobs"), len(token_ids)), finished)


def _parsed_log_probs(answer: Any, length: int) -> list[float]:
    values = answer.get("token_logprobs") if isinstance(answer, dict) else None
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(f"`token_logprobs` is {_shown(values)}, not a list of {length} numbers")
    return [_log_prob(value, "token_logprobs") for value in values]


def _log_prob(value: Any, name: str) -> float:
    """Return a log-probability: a finite number that is not positive; rounding may make it so by `_ROUNDING`."""
    if type(value) not in (int, float) or not -_LARGEST <= value <= _ROUNDING:
        raise ValueError(f"`{name}` has {_shown(value)}, which is no log-probability")
    return min(float(value), 0.0)


def _shown(value: Any) -> str:
    return printable(reprlib.repr(value))


def scoring_request(token_ids: Sequence[int]) -> dict[str, Any]:
    """Return a request for the log-probabilities of the tokens of a prompt."""
    return {"prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def parsed_scores(url: str, choices: Choices, token_ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of all tokens of a prompt but the first.

    Raises:
        ServerFailure: log-probabilities are missing, or have a value that no model returns.
    """
    try:
        entries = choices[0]["prompt_logprobs"][1:]
        values = [entry[str(token)]["logprob"] for entry, token in zip(entries, token_ids[1:], strict=True)]
        return [_log_prob(value, "prompt_logprobs") for value in values]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ServerFailure(
            f"{url} answered without log-probabilities of the prompt ({printable(repr(error))})"
        ) from None


def collected(completions: Sequence[Completion]) -> Completions:
    """Return completions as tensors, padded on the right."""
    columns = {
        "token_ids": [torch.tensor(completion.token_ids) for completion in completions],
        "mask": [torch.ones(len(completion.token_ids), dtype=torch.bool) for completion in completions],
        "log_probs": [torch.tensor(completion.log_probs, dtype=torch.float32) for completion in completions],
    }
    padded = {name: pad_sequence(rows, batch_first=True) for name, rows in columns.items()}
    return Completions(finished=torch.tensor([completion.finished for completion in completions]), **padded)
