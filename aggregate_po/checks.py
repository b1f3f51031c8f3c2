"""Checks that a batch has what the parts of an objective define."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aggregate_po.aggregators.base import TokenAggregator
from aggregate_po.batch import PolicyBatch
from aggregate_po.prefixes import PrefixAggregate
from aggregate_po.shapes import PerCompletion
from aggregate_po.suffixes import SuffixWeight
from aggregate_po.transforms.base import RatioTransform


class TokenParts(Protocol):
    """The parts of an objective whose result depends on how often a token counts."""

    aggregator: TokenAggregator
    token_transform: RatioTransform | None
    sequence_transform: RatioTransform | None
    prefix: PrefixAggregate | None
    suffix_weight: SuffixWeight | None


def parts_without_weights(
    parts: TokenParts,
) -> list[TokenAggregator | PrefixAggregate | SuffixWeight | RatioTransform]:
    """Return those of these parts that have no definition for tokens that count by weights."""
    chosen = (parts.suffix_weight, parts.prefix, parts.token_transform, parts.aggregator, parts.sequence_transform)
    before = parts.token_transform
    by_place = [before] if before is not None and before.reads_positions else []
    return [*by_place, *(part for part in chosen if part is not None and not part.takes_mean_weights)]


def require_weights_taken(parts: TokenParts, batch: PolicyBatch) -> None:
    """Raise for weights of the tokens that a part would ignore.

    Raises:
        ValueError: the batch has weights, and a part counts every token once.
    """
    for part in parts_without_weights(parts):
        if batch.mean_weights is not None:
            raise ValueError(
                f"`mean_weights` has shape {tuple(batch.mean_weights.shape)}, but {part!r} counts every token once; "
                "pass boolean weights, which are a mask, or a part that reads `tokens.mean_weights` and returns True "
                "from `takes_mean_weights`."
            )


def require_parts_of_tokens_only(suffix_weight: SuffixWeight, on_completions: Mapping[str, object]) -> None:
    """Raise for parts that have no definition for the advantages per token that a suffix weight gives.

    Args:
        suffix_weight: The suffix weight.
        on_completions: Parts that act on completions, by the names of their arguments; each must be None.

    Raises:
        ValueError: there is such a part.
    """
    for name, part in on_completions.items():
        if part is not None:
            raise ValueError(
                f"`suffix_weight` {suffix_weight!r} gives each token its own advantage, but `{name}` {part!r} acts on "
                "completions, which have no advantage per token; pass one of the two."
            )


def require_one_ratio(name: str, part: object, batch: PolicyBatch) -> None:
    """Raise for per-token advantages and corrections: a part that acts on completions has a definition for neither.

    Raises:
        ValueError: the batch has advantages or correction weights per token.
    """
    acts = f"which `{name}` {part!r} acts on"
    if batch.has_token_advantages:
        raise ValueError(
            f"`advantages` has shape `batch time`, but the ratio of a completion, {acts}, has no advantage per "
            "token; pass one advantage per completion, or give each token its completion's ratio "
            "(aggregate_po.transforms.CompletionRatio)."
        )
    if batch.correction.log_token is not None:
        raise ValueError(
            f"`correction` has a weight per token, but the ratio of a completion, {acts}, would be clipped with "
            "them; pass a SequenceCorrection, which multiplies what the clip leaves."
        )


def require_comparable(part: object, batch: PolicyBatch) -> None:
    """Raise for what a group objective has no definition for: advantages per token, and correction weights.

    Raises:
        ValueError: the batch has advantages per token, or a correction with weights.
    """
    if batch.has_token_advantages:
        raise ValueError(
            f"`advantages` has shape `batch time`, but `group_objective` {part!r} compares completions; pass one "
            "advantage per completion, or leave the group objective out."
        )
    if batch.correction.log_token is not None or batch.correction.log_sequence is not None:
        raise ValueError(
            f"`correction` has weights, which would shift the log values that `group_objective` {part!r} compares; "
            "pass no correction."
        )


def required_groups(batch: PolicyBatch) -> PerCompletion:
    """Return the numbers of the groups, for an objective that compares the completions of a group.

    Raises:
        ValueError: the batch has none.
    """
    if batch.groups is None:
        raise ValueError(
            "`groups` is None, but the objective compares the completions of a group; pass the number of each "
            "completion's group, `PolicyBatch(..., groups=...)`, shape `batch`."
        )
    return batch.groups
