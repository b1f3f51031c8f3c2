"""Spans of the completions of a rollout, such as turns and sentences, for means over spans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from aggregate_po import PerToken
from aggregate_po.shapes import require_shape
from lightning_modules.data.groups import Groups


class SpanRule(ABC):
    """Numbers the spans of each completion, which `PolicyBatch.span_ids` passes to the objective.

    Subclass requirements:

    - Implement `__call__`. The spans of a completion must depend on this completion only, and padding must have no
      effect.
    """

    @abstractmethod
    def __call__(self, token_ids: Tensor, response_mask: PerToken, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Return the number of each token's span, an integer from 0, arbitrary on padding; shape `batch time`.

        Args:
            token_ids: tokens of the completions; shape `batch time`.
            response_mask: True on trained tokens, boolean; shape `batch time`.
            tokenizer: tokenizer of the policy.
        """


@dataclass(frozen=True)
class Turns(SpanRule):
    """Turns of a completion: runs of trained tokens, between tokens that others wrote, such as tool output."""

    @override
    def __call__(self, token_ids: Tensor, response_mask: PerToken, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        begins = response_mask & ~pad(response_mask[:, :-1], (1, 0))
        return (begins.cumsum(dim=-1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Sentences(SpanRule):
    """Sentences of a completion: a token ends one if its text ends with a line break, or with a mark before a space.

    A mark inside a word or a number, as in 3.14, ends no sentence. A rule of tokens is approximate: abbreviations end
    sentences too.

    Args:
        marks: Texts that end a sentence where white space follows.
    """

    marks: tuple[str, ...] = (".", "!", "?")

    @override
    def __call__(self, token_ids: Tensor, response_mask: PerToken, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        known, places = torch.unique(token_ids, return_inverse=True)
        texts = tokenizer.batch_decode(known.unsqueeze(-1).tolist())
        names = tokenizer.convert_ids_to_tokens(known.tolist())
        # Tokenizers write a leading space in different ways, and some drop it from the text of a single token.
        # A row of the embedding beyond the vocabulary has no name.
        firsts = [(name or "")[:1] for name in names]
        spaced = [text[:1].isspace() or first in "\u0120\u2581" for text, first in zip(texts, firsts, strict=True)]
        breaks = torch.tensor([text.rstrip(" ").endswith("\n") for text in texts], device=places.device)
        marks = torch.tensor([text.rstrip().endswith(self.marks) for text in texts], device=places.device)
        before_space = pad(torch.tensor(spaced, device=places.device)[places][:, 1:], (0, 1), value=True)
        ends = breaks[places] | (marks[places] & before_space)
        return ends.cumsum(dim=-1) - ends.long()


def span_ids(rule: SpanRule | None, groups: Groups, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Return the spans of the tokens of this rank; None without a rule; shape `batch time`.

    Raises:
        ValueError: the rule returned a wrong shape.
    """
    if rule is None:
        return None
    ids = rule(groups.completions.token_ids, groups.response_mask, tokenizer)
    require_shape(rule, "__call__", ids, "`batch time`", groups.response_mask.shape)
    return ids
