"""A row with prompts and their completions, in which each completion attends to its prompt and to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class GroupRow:
    """The tokens of prompts and of their completions, one after the other in a row without padding.

    Attention alone is computed in padded rows, once among the tokens of each prompt, and once from each completion to
    its prompt and itself. A prompt's keys and values are those of the row, so gradients of all its completions add up.

    Args:
        prompt_mask: True on prompt tokens, padded on the left; shape `prompt prompt_time`.
        completion_mask: True on the tokens of completions, padded on the right; shape `batch time`.
        prompt_of: index of each completion's prompt; shape `batch`.

    Attributes:
        positions: position of each token within its sequence; shape `token`.
        places: place in the row of the last token of a completion's prompt, and of each of its own tokens; that of
            another token on padding; shape `batch time+1`.
    """

    def __init__(self, prompt_mask: Tensor, completion_mask: Tensor, prompt_of: Tensor) -> None:
        self._masks, self._prompt_of = (prompt_mask, completion_mask), prompt_of
        tokens = torch.cat([mask.flatten() for mask in self._masks])
        self._tokens = torch.arange(len(tokens), device=tokens.device)[tokens]
        # Padding stands for another token, and is masked.
        self._queries = (tokens.cumsum(dim=0) - 1).clamp(min=0)
        of_prompts, of_completions = (
            places.view_as(mask) for places, mask in zip(self._split(self._queries), self._masks, strict=True)
        )
        seen = torch.cat([of_prompts[prompt_of], of_completions], dim=1)
        self._keys = torch.cat([of_prompts.flatten(), seen.flatten()])
        self.places = seen[:, prompt_mask.shape[1] - 1 :]
        after = prompt_mask.sum(dim=-1)[prompt_of].unsqueeze(-1) + completion_mask.cumsum(dim=-1)
        self.positions = self.of(prompt_mask.cumsum(dim=-1) - 1, after - 1)

    def of(self, in_prompts: Tensor, in_completions: Tensor) -> Tensor:
        """Return values of padded prompts and completions for the tokens of the row; shape `token`."""
        return torch.cat([in_prompts.flatten(), in_completions.flatten()]).index_select(0, self._tokens)

    def masks(self, mask: Callable[..., Tensor | None], **options: Any) -> GroupMasks:
        """Return the masks of attention.

        Args:
            mask: makes a mask as transformers does, of the sizes and offsets of queries and keys.
            options: further arguments of `mask`, such as the function that tells which tokens see each other.
        """
        prompts, completions = self._masks
        (count, start), (batch, time) = prompts.shape, completions.shape
        seen = torch.cat([prompts[self._prompt_of], completions], dim=1)
        own = {"batch_size": count, "q_length": start, "kv_length": start, "q_offset": 0, "kv_offset": 0}
        after = {"batch_size": batch, "q_length": time, "kv_length": start + time, "q_offset": start, "kv_offset": 0}
        return GroupMasks(
            self,
            mask(**{**options, **own, "attention_mask": prompts}),
            mask(**{**options, **after, "attention_mask": seen}),
        )

    def attend(
        self,
        attention: Callable[..., tuple[Tensor, Any]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        masks: GroupMasks,
        **options: Any,
    ) -> Tensor:
        """Return the outputs of attention for the tokens of the row; shape `1 token head size`.

        Args:
            attention: attention of transformers, over padded rows.
            query: queries of the tokens; shape `1 head token size`.
            key: their keys, perhaps of fewer heads.
            value: their values.
            masks: masks of this row.
            options: further arguments of `attention`, such as the scale.
        """
        spread = [self._spread(query, self._queries), self._spread(key, self._keys), self._spread(value, self._keys)]
        outputs = [
            attention(*states, mask, **options)[0].flatten(0, 1)
            for *states, mask in zip(*spread, [masks.of_prompts, masks.of_completions], strict=True)
        ]
        padded = torch.cat(outputs)
        return _picked(padded, self._tokens).unsqueeze(0)

    def _spread(self, states: Tensor, places: Tensor) -> list[Tensor]:
        """Return states of the row in padded rows, of prompts and of completions; shape `row head time size` each."""
        picked = self._split(_picked(states.squeeze(0).transpose(0, 1), places))
        return [
            part.unflatten(0, (len(mask), -1)).transpose(1, 2) for part, mask in zip(picked, self._masks, strict=True)
        ]

    def _split(self, values: Tensor) -> list[Tensor]:
        """Split the values of padded rows into those of prompts and those of completions."""
        prompts = self._masks[0].numel()
        return list(values.split([prompts, len(values) - prompts]))


@dataclass(frozen=True)
class GroupMasks:
    """Masks of attention within the prompts of a row, and from completions to their prompts and themselves.

    Args:
        row: the row.
        of_prompts: mask of transformers; shape `prompt 1 prompt_time prompt_time`.
        of_completions: mask of transformers; shape `batch 1 time prompt_time+time`.
    """

    row: GroupRow
    of_prompts: Tensor | None
    of_completions: Tensor | None


def _picked(states: Tensor, places: Tensor) -> Tensor:
    """Return states at places; shape `place head size`."""
    # The gradient of rows of one dimension is added up far faster.
    return states.flatten(1).index_select(0, places).unflatten(1, states.shape[1:])
