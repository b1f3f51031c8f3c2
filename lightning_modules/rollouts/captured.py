"""Reading of tokens by passes that a GPU captures once and replays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.model.cache import TokenCache
from lightning_modules.model.sharding import is_sharded
from lightning_modules.rollouts.readers import ROOM, CachedReader, TokenReader


class CapturedReader(CachedReader):
    """Reads prompts as a `CachedReader`, and the tokens after them by a `CapturedPass`.

    A pass over one token of a small model takes a GPU less time than Python takes to launch it. Fewer rows need another
    pass, and so does a larger cache. So rows that have ended are read on until half of them have.
    """

    described = "by a captured pass"

    @classmethod
    @override
    def serves(cls, model: PreTrainedModel) -> bool:
        """Whether the model is whole on a GPU, has the attention `sdpa`, and keeps keys and values of all tokens."""
        attention = model.config.get_text_config()._attn_implementation
        return model.device.type == "cuda" and not is_sharded(model) and attention == "sdpa" and _keeps_all(model)

    @classmethod
    @override
    def launched(cls) -> type[TokenReader]:
        return CachedReader

    @override
    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._pass: CapturedPass | None = None
        self._rows = torch.arange(0)  # those of the pass that go on
        return super().read_prompts(prompts)

    @override
    def read(self, token_ids: Tensor) -> Tensor:
        for tokens in token_ids.split(1, dim=1):
            logits = self._running_pass().read(self._rows, tokens)
        return logits

    @override
    def select(self, rows: Tensor) -> None:
        if self._pass is None:
            super().select(rows)
            return
        self._rows = self._rows[rows]
        if 2 * len(self._rows) <= len(self._mask) or len(self._rows.unique()) < len(self._rows):
            self._end_pass()

    def _running_pass(self) -> CapturedPass:
        """Return the pass that has room for a token: the last one, or a new one of the rows that go on."""
        if self._pass is not None and self._pass.room > 0:
            return self._pass
        self._end_pass()
        self._rows = torch.arange(len(self._mask), device=self._mask.device)
        self._pass = CapturedPass(self._model, self.cache, self._mask, self._position)
        return self._pass

    def _end_pass(self) -> None:
        """Keep what the pass has read in the rows that go on, and free its memory."""
        if self._pass is not None:
            self.cache.extend(self._pass.count)
            self._mask, self._position = self._pass.mask_and_position()
            self._pass = None
            super().select(self._rows)


class CapturedPass:
    """A pass over the next token of each row, of fixed shape: launched at first, then captured, then replayed.

    The launched pass loads kernels, which a capture must not. It fails where the model waits for the GPU, as experts
    may to count their tokens, since a capture would fail there, too, and leave the random numbers of the GPU unusable.

    Args:
        model: the model that reads.
        cache: keys and values of the tokens read.
        mask: 1 on tokens and 0 on padding, for those read; shape `batch time`.
        position: position of the next token within its row; shape `batch 1`.

    Attributes:
        count: number of tokens of a row that it has read.
        room: number of further tokens of a row that it can read.
    """

    def __init__(self, model: PreTrainedModel, cache: TokenCache, mask: Tensor, position: Tensor) -> None:
        batch, length = mask.shape
        self._model, self._length = model, length
        self._place = torch.tensor([length], device=mask.device)
        self._cache = cache.fixed(self._place)
        self._tokens, self._position = torch.zeros_like(position), position.clone()
        self._mask = torch.zeros(batch, 1, 1, self._cache.size, dtype=torch.bool, device=mask.device)
        self._mask[:, 0, 0, :length] = mask.bool()
        self._graph: torch.cuda.CUDAGraph | None = None
        self.count, self.room = 0, self._cache.size - length

    def read(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """Read the next token of some rows, shape `row 1`, and return the logits of the one after it.

        The other rows read their last token again.
        """
        self._tokens[rows] = token_ids
        if self.count == 0 or not self._tokens.is_cuda:
            with _waits_refused(self._tokens.device):
                self._logits = self._launch()
        else:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                # Other threads, such as those of collectives and of data loaders, may use the GPU meanwhile.
                with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                    self._logits = self._launch()
            self._graph.replay()
        self.count, self.room = self.count + 1, self.room - 1
        return self._logits[rows]

    def mask_and_position(self) -> tuple[Tensor, Tensor]:
        """Return the mask of the tokens read, shape `batch time`, and the position of the next one, shape `batch 1`."""
        return self._mask[:, 0, 0, : self._length + self.count].long(), self._position

    def _launch(self) -> Tensor:
        self._mask.index_fill_(3, self._place, True)
        inputs = {"input_ids": self._tokens, "attention_mask": self._mask, "position_ids": self._position}
        logits = self._model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        self._place.add_(1)
        self._position.add_(1)
        return logits


def _keeps_all(model: PreTrainedModel) -> bool:
    try:
        return TokenCache(model, ROOM).has_room
    except (ValueError, KeyError, AttributeError):  # transformers knows no cache of the model
        return False


@contextmanager
def _waits_refused(device: torch.device) -> Iterator[None]:
    """Let each operation that waits for a GPU raise a RuntimeError."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
