"""Reading of tokens by a model, for the logits after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from aggregate_po import PerToken
from lightning_modules.batch import Sequences, left_padded
from lightning_modules.model.cache import TokenCache

ROOM = 64  # tokens by which the cache grows


class TokenReader(ABC):
    """Reads the tokens of a batch of rows, all rows by the same number.

    Args:
        model: the model that reads.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @abstractmethod
    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read one prompt per row, and return the logits of the next token of each; shape `batch vocabulary`."""

    @abstractmethod
    def read(self, token_ids: Tensor) -> Tensor:
        """Read the next tokens of each row, shape `batch time`, and return the logits of the one after them."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Continue with some of the rows, in the given order, each as often as it is named."""

    @abstractmethod
    def kept(self) -> list[Tensor]:
        """Return the tensors that are kept of the tokens read."""


class CachedReader(TokenReader):
    """Reads each token once, and keeps what the model needs of it in a cache; prompts are padded on the left."""

    @override
    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        input_ids, mask = left_padded(prompts, self._model.device)
        self.cache, self._mask = TokenCache(self._model, ROOM), mask.long()
        self._position = self._mask.sum(dim=-1, keepdim=True)
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        return self.cache.read(input_ids, self._mask, positions, logits_to_keep=1)[:, -1]

    @override
    def read(self, token_ids: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, torch.ones_like(token_ids)], dim=1)
        positions = self._position + torch.arange(token_ids.shape[1], device=token_ids.device)
        self._position = self._position + token_ids.shape[1]
        return self.cache.read(token_ids, self._mask, positions, logits_to_keep=1)[:, -1]

    @override
    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    @override
    def kept(self) -> list[Tensor]:
        return [*self.cache.keys_and_values(), *self.cache.states()]


class UncachedReader(TokenReader):
    """Reads all tokens of a row again for each next one, without a cache; prompts must have the same length."""

    @override
    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._token_ids = torch.tensor(prompts, device=self._model.device)
        return self._logits()

    @override
    def read(self, token_ids: Tensor) -> Tensor:
        self._token_ids = torch.cat([self._token_ids, token_ids], dim=1)
        return self._logits()

    @override
    def select(self, rows: Tensor) -> None:
        self._token_ids = self._token_ids[rows]

    @override
    def kept(self) -> list[Tensor]:
        return [self._token_ids]

    def _logits(self) -> Tensor:
        return self._model(input_ids=self._token_ids, use_cache=False, logits_to_keep=1).logits[:, -1]


@dataclass(frozen=True)
class Reading:
    """A way of reading prompts and completions.

    Args:
        reader: class of the reader.
        by_length: whether only prompts of the same length are read together.
    """

    reader: type[TokenReader]
    by_length: bool = False

    @property
    def described(self) -> str:
        """Words for the way, after "samples"."""
        if self.reader is UncachedReader:
            return "without a cache, by a forward pass over the whole row for each token"
        return "with prompts of the same length at a time" if self.by_length else "with all prompts at a time"

    def batches(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Return the indices of the prompts that are read together, at most so many at a time."""
        lengths = sorted({len(prompt) for prompt in prompts}) if self.by_length else [None]
        groups = [[i for i, prompt in enumerate(prompts) if length in (None, len(prompt))] for length in lengths]
        return [group[start : start + most] for group in groups for start in range(0, len(group), most)]

    def log_probs(self, model: PreTrainedModel, sequences: Sequences) -> PerToken:
        """Return the log-probabilities that sampling notes for completions; shape `batch time`; nats; 0 on padding."""
        lengths, mask = sequences.completion_mask.sum(dim=-1), sequences.completion_mask
        prompts = [ids[kept].tolist() for ids, kept in zip(sequences.prompt_ids, sequences.prompt_mask, strict=True)]
        found = torch.zeros(mask.shape, dtype=torch.double, device=mask.device)
        for batch in self.batches(prompts, len(prompts)):
            reader = self.reader(model)
            logits = reader.read_prompts([prompts[index] for index in batch])
            rows = torch.isin(sequences.prompt_of, torch.tensor(batch, device=mask.device)).nonzero().squeeze(-1)
            chosen = torch.tensor([batch.index(prompt) for prompt in sequences.prompt_of[rows].tolist()]).to(rows)
            reader.select(chosen)
            logits = logits[chosen]
            for time in range(int(lengths[rows].max())):
                tokens = sequences.completion_ids[rows, time]
                log_p = torch.log_softmax(logits.double(), dim=-1)
                found[rows, time] = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
                going = (lengths[rows] > time + 1).nonzero().squeeze(-1)
                if len(going) == 0:
                    break
                reader.select(going)  # as completions that have ended leave the batch
                rows = rows[going]
                logits = reader.read(tokens[going].unsqueeze(-1))
        return found


# From the fastest to the slowest, which serves every causal model.
READINGS = (Reading(CachedReader), Reading(CachedReader, by_length=True), Reading(UncachedReader, by_length=True))
