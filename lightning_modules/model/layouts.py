"""Sequence layouts: arrangements of prompts and completions for the forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.batch import Extent, Sequences
from lightning_modules.model.attention import within_groups
from lightning_modules.model.cache import TokenCache
from lightning_modules.model.group_row import GroupRow
from lightning_modules.model.sharding import blocks, is_sharded


class SequenceLayout(ABC):
    """Runs the model over the prompts and completions of a micro-batch.

    Subclass requirements:

    - Implement `last_layer`. Each token of a completion needs the logits one position earlier, computed from its own
      prompt and the tokens before it, and from nothing else. Return them in the order of `completion_mask`.
    - Implement `size`, the number of positions that the model reads for a micro-batch. It must not decrease when the
      micro-batch grows, because `data.tokens_per_micro_batch` is met by a search over it.
    - Call the model itself, not its layers. Its `logits` are its last hidden states where the loss head computes the
      logits in chunks, so pass them on unchanged.
    - Call a sharded model equally often on every rank, whatever the micro-batch.
    """

    @abstractmethod
    def size(self, extent: Extent) -> int:
        """Return the number of tokens of a micro-batch in this layout, padding included.

        It must not decrease when a completion is added. The last token of a completion counts, although the model need
        not process it.
        """

    @abstractmethod
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        """Return the outputs of the model at the positions that predict the completion tokens.

        Returns:
            Rows of the model's `logits`, or of its last hidden states while the output layer is bypassed; shape
            `token size`, in the order of `completion_mask`.
        """


class SharedPrompts(SequenceLayout):
    """Shared prompts: each prompt is processed once, and all its completions attend to its keys and values.

    Gradients flow through the shared keys and values. Prompts are read in one pass and completions in another, padded
    to the longest of the micro-batch.
    """

    @override
    def size(self, extent: Extent) -> int:
        return extent.prompts * extent.longest_prompt + extent.completions * extent.longest

    @override
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        cache, prompt_mask = TokenCache(model), batch.prompt_mask
        positions = (prompt_mask.cumsum(dim=-1) - 1).clamp(min=0)
        prompt = cache.read(batch.prompt_ids, prompt_mask.long(), positions, logits_to_keep=1)
        # Each token is predicted at the position before it: the first one by the prompt. The last one predicts nothing.
        first = prompt[batch.prompt_of]
        time = batch.completion_ids.shape[1]
        # All ranks of a sharded model must make the same number of forward calls, so one token is processed there, too.
        read = max(time - 1, int(is_sharded(model)))
        if read == 0:
            return first[batch.completion_mask]
        cache.select(batch.prompt_of)
        mask = torch.cat([prompt_mask[batch.prompt_of], batch.completion_mask[:, :read]], dim=1)
        positions = mask.cumsum(dim=-1)[:, prompt_mask.shape[1] :] - 1
        completion = cache.read(batch.completion_ids[:, :read], mask.long(), positions)
        return torch.cat([first, completion], dim=1)[:, :time][batch.completion_mask]


class PackedGroups(SharedPrompts):
    """Packed groups: shared prompts in one pass over a row of all prompts and completions without padding.

    The attention must be the `sdpa` of transformers. It alone computes with padding, which the size of a micro-batch
    includes.
    """

    @override
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        mask = batch.completion_mask
        # The last token of a completion predicts nothing, so it is left out.
        row = GroupRow(batch.prompt_mask, mask[:, 1:], batch.prompt_of)
        ids = row.of(batch.prompt_ids, batch.completion_ids[:, :-1]).unsqueeze(0)
        # Without a mask of its own, the model would take the row for sequences that begin where positions do.
        inputs = {"input_ids": ids, "position_ids": row.positions.unsqueeze(0), "attention_mask": torch.ones_like(ids)}
        with within_groups(model, row):
            states = model(**inputs, use_cache=False).logits.squeeze(0)
        return states.index_select(0, row.places[mask])


class PaddedSequences(SequenceLayout):
    """Padded sequences: each completion follows its prompt in a row of its own, padded on the right.

    There is neither a cache nor a mask: in a causal model no token depends on the padding after it. So the layout
    serves every causal model, such as those with recurrent states. A prompt is processed once per completion.
    """

    @override
    def size(self, extent: Extent) -> int:
        return extent.completions * (extent.longest_prompt + extent.longest)

    @override
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        prompts, mask = batch.prompt_mask[batch.prompt_of], batch.completion_mask
        tokens = torch.cat([prompts, mask], dim=1)
        ids = torch.cat([batch.prompt_ids[batch.prompt_of], batch.completion_ids], dim=1)
        order = tokens.long().argsort(dim=-1, descending=True, stable=True)  # the padding moves behind the tokens
        # The last position of the longest possible row predicts nothing.
        rows = (ids * tokens).gather(-1, order)[:, :-1]
        logits = model(input_ids=rows, use_cache=False).logits
        place = prompts.sum(dim=-1, keepdim=True) + mask.cumsum(dim=-1) - 2
        row = torch.arange(len(mask), device=mask.device).unsqueeze(-1).expand_as(mask)
        return logits[row[mask], place[mask]]


class PackedSequences(SequenceLayout):
    """Packed sequences: all prompts and completions are concatenated in one row without padding.

    The attention must separate the sequences by their position ids. FlashAttention does so at no cost; other
    implementations of transformers compute and mask the full attention matrix of the row. A prompt is processed once
    per completion.

    Args:
        recompute: Whether to recompute the activations of each block in the backward pass (activation checkpointing).
            This takes a third more time, and keeps the activations of one block in memory.
    """

    def __init__(self, recompute: bool = False) -> None:
        self.recompute = recompute

    @override
    def size(self, extent: Extent) -> int:
        return extent.prompt_tokens + extent.tokens

    @override
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        prompts, mask = batch.prompt_mask[batch.prompt_of], batch.completion_mask
        # The last token of a completion predicts nothing, so it is left out.
        read = mask & (mask.cumsum(dim=-1) < mask.sum(dim=-1, keepdim=True))
        tokens = torch.cat([prompts, read], dim=1)
        ids = torch.cat([batch.prompt_ids[batch.prompt_of], batch.completion_ids], dim=1)
        positions = tokens.cumsum(dim=-1) - 1
        # Position in the row that predicts each token: after earlier sequences, the prompt, and the tokens before it.
        ends = tokens.sum(dim=-1).cumsum(dim=0) - tokens.sum(dim=-1)
        place = ends.unsqueeze(-1) + prompts.sum(dim=-1, keepdim=True) + mask.cumsum(dim=-1) - 2
        # With a mask or a cache the sequences would attend to each other.
        inputs = {"input_ids": ids[tokens].unsqueeze(0), "position_ids": positions[tokens].unsqueeze(0)}
        with _recomputed(model) if self.recompute and torch.is_grad_enabled() else nullcontext():
            return model(**inputs, use_cache=False).logits[0, place[mask]]


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Apply activation checkpointing to the blocks within the context."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks(model):
            del block.forward  # restores the method of the class
