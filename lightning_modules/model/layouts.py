"""How the completions of a micro-batch are laid out for the model's forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from lightning_modules.batch import Extent, Sequences
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
        """Tokens of a micro-batch of this extent, padding included; no less for a larger one.

        The last token of a completion counts, although the model need not run over it.
        """

    @abstractmethod
    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        """What the model says one place before each token of the completions.

        Returns:
            The model's `logits`, whatever they are at present; shape `token size`, in the order of `completion_mask`.
        """


class SharedPrompts(SequenceLayout):
    """Each prompt is read once, and its keys and values serve all its completions, in the backward pass too.

    Completions are padded to the longest of the micro-batch.
    """

    def size(self, extent: Extent) -> int:
        """See `SequenceLayout`."""
        return extent.prompts * extent.longest_prompt + extent.completions * extent.longest

    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        """See `SequenceLayout`."""
        cache = DynamicCache(config=model.config)
        prompt_mask = batch.prompt_mask
        prompt = model(
            input_ids=batch.prompt_ids,
            attention_mask=prompt_mask.long(),
            position_ids=(prompt_mask.cumsum(dim=-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        # A token is predicted one place before it: the first by the prompt, the last one predicts nothing.
        first = prompt.logits[batch.prompt_of]
        time = batch.completion_ids.shape[1]
        # Ranks of a sharded model make the same number of forward calls, so there one token is read like two.
        read = max(time - 1, int(is_sharded(model)))
        if read == 0:
            return first[batch.completion_mask]
        cache.batch_select_indices(batch.prompt_of)
        mask = torch.cat([prompt_mask[batch.prompt_of], batch.completion_mask[:, :read]], dim=1)
        completion = model(
            input_ids=batch.completion_ids[:, :read],
            attention_mask=mask.long(),
            position_ids=mask.cumsum(dim=-1)[:, prompt_mask.shape[1] :] - 1,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([first, completion.logits], dim=1)[:, :time][batch.completion_mask]


class PackedSequences(SequenceLayout):
    """Each completion follows its own prompt, all of them end to end in one row without padding.

    For attention that keeps sequences apart by their positions: FlashAttention does so at no cost; others of
    transformers compute the whole square of the row and mask it. Prompts are read once for each completion.

    Args:
        recompute: whether the activations of each block are computed again in the backward pass, which takes a third
            more time and leaves one block's in memory (activation checkpointing).

    Raises:
        ValueError: by `last_layer`, where the model's attention does not keep sequences apart.
    """

    def __init__(self, recompute: bool = False) -> None:
        self.recompute = recompute
        self._checked: WeakSet[nn.Module] = WeakSet()

    def size(self, extent: Extent) -> int:
        """See `SequenceLayout`."""
        return extent.prompt_tokens + extent.tokens

    def last_layer(self, model: PreTrainedModel, batch: Sequences) -> Tensor:
        """See `SequenceLayout`."""
        if model not in self._checked:
            _check_packing(model, batch.prompt_ids.device)
            self._checked.add(model)
        prompts, mask = batch.prompt_mask[batch.prompt_of], batch.completion_mask
        # The last token of a completion predicts nothing, so it is not read.
        read = mask & (mask.cumsum(dim=-1) < mask.sum(dim=-1, keepdim=True))
        tokens = torch.cat([prompts, read], dim=1)
        ids = torch.cat([batch.prompt_ids[batch.prompt_of], batch.completion_ids], dim=1)
        positions = tokens.cumsum(dim=-1) - 1
        # Before each token of a completion stand its prompt and the tokens before it; earlier rows come first.
        ends = tokens.sum(dim=-1).cumsum(dim=0) - tokens.sum(dim=-1)
        place = ends.unsqueeze(-1) + prompts.sum(dim=-1, keepdim=True) + mask.cumsum(dim=-1) - 2
        with _recomputed(model) if self.recompute and torch.is_grad_enabled() else nullcontext():
            return _packed(model, ids[tokens], positions[tokens])[place[mask]]


def _packed(model: PreTrainedModel, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits of sequences that stand end to end; a mask, or a cache, would let them see each other."""
    output = model(input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False)
    return output.logits[0]


@torch.no_grad()
def _check_packing(model: PreTrainedModel, device: torch.device) -> None:
    ids, positions = torch.tensor([3, 2, 1, 2, 3], device=device), torch.tensor([0, 1, 0, 1, 2], device=device)
    together = _packed(model, ids, positions)[2:]
    alone = _packed(model, ids[2:], positions[2:])
    if (together - alone).abs().max() > 0.02 * alone.abs().max():
        raise ValueError(
            f"`layout` is PackedSequences, but {type(model).__name__} with its attention "
            f"{model.config._attn_implementation!r} lets packed sequences see each other; pass SharedPrompts()."
        )


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Have the blocks keep their inputs alone, and compute the rest again in the backward pass."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks(model):
            del block.forward  # the class's own again
