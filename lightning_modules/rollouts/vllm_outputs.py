"""Conversion of the outputs of an in-process vLLM engine to tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.rollouts.base import Completions


def completions_of(outputs: Sequence[Any], copies: int) -> Completions:
    """Return the completions of several prompts, each repeated `copies` times, padded on the right."""
    rows = [row for output in outputs for row in sorted(output.outputs, key=lambda row: row.index)]
    rows = [row for row in rows for _ in range(copies)]
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    token_ids = [torch.tensor(row.token_ids, dtype=torch.long) for row in rows]
    log_probs = [torch.tensor(chosen_log_probs(row.token_ids, row.logprobs)) for row in rows]
    return Completions(
        token_ids=pad_sequence(token_ids, batch_first=True),
        mask=torch.arange(int(lengths.max())) < lengths.unsqueeze(-1),
        log_probs=pad_sequence(log_probs, batch_first=True),
        finished=torch.tensor([row.finish_reason == "stop" for row in rows]),
    )


def chosen_log_probs(tokens: Sequence[int], steps: Sequence[Mapping[int, Any] | None] | None) -> list[float]:
    """Return the log-probability of each token, NaN if the engine returned none."""
    if steps is None:
        return [math.nan] * len(tokens)
    entries = [step.get(token) if step else None for token, step in zip(tokens, steps, strict=True)]
    return [math.nan if entry is None else entry.logprob for entry in entries]
