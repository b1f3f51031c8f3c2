"""Reading of tokens by a model, for the logits after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.batch import left_padded
from lightning_modules.model.cache import TokenCache

ROOM = 64  # tokens by which the cache grows


class TokenReader(ABC):
    """Reads the tokens of a batch of rows, all rows by the same number.

    Args:
        model: the model that reads.

    Attributes:
        described: words for the way it reads, after "samples".
    """

    described: ClassVar[str]

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @classmethod
    def serves(cls, model: PreTrainedModel) -> bool:
        """Whether it is worth trying the reader with a model on its device."""
        return True

    @classmethod
    def launched(cls) -> type[TokenReader]:
        """Return the reader that keeps the same tensors and launches each pass; it can be traced without a GPU."""
        return cls

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

    described = "with a cache"

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

    described = "without a cache, by a forward pass over the whole row for each token"

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
