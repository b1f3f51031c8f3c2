"""Aggregates in two stages: of the tokens of each span, and of the spans of a completion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.aggregators.base import EvaluatedAggregator, TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.masked import masked_length, masked_mean, masked_sum
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class NestedMean(TokenAggregator):
    r"""Aggregate of the spans' aggregates, $M^\mathrm{outer}\bigl(M^\mathrm{inner}(r_t)_{t \in \text{span}}\bigr)$.

    A span is a sentence, a step or a turn: the tokens of a completion that have the same number in `span_ids`, adjacent
    or not. Each span counts once in the outer aggregate, whatever its length and the `mean_weights` of its tokens. The
    weight of a token is the product of its weight in its span and the weight of its span (eq. 59). The result is a mean
    if both aggregates are.

    The spans are copied into a context with a row for each, padded to the longest span of the batch.

    Args:
        inner: Aggregator of the tokens of a span.
        outer: Aggregator of the spans of a completion; an exponent rule sees spans in place of tokens, and a span as
            saturated if all its tokens are.

    Raises:
        TypeError: an argument is not an aggregator.
        ValueError: when called, if the batch has no `span_ids`.

    Example:
        >>> from aggregate_po.aggregators import ArithmeticMean, GeometricMean
        >>> log_ratio, sentences = torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.tensor([[0, 0, 1, 1]])
        >>> mean = NestedMean(inner=GeometricMean(), outer=ArithmeticMean())
        >>> mean.log_aggregate(TokenRatios.of(log_ratio, span_ids=sentences)).exp()  # of e^0.05 and e^0.15
        tensor([1.1066])
    """

    inner: TokenAggregator
    outer: TokenAggregator

    def __post_init__(self) -> None:
        for name, part in vars(self).items():
            if not isinstance(part, TokenAggregator):
                raise TypeError(
                    f"`{name}` is {part!r}; pass an instance of a subclass of aggregate_po.TokenAggregator."
                )

    @property
    @override
    def takes_mean_weights(self) -> bool:
        return self.inner.takes_mean_weights

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        layout = SpanLayout.of(tokens)
        within = layout.within(tokens)
        return self.outer.log_aggregate(self._across(layout, tokens, within, self.inner.log_aggregate(within)))

    @override
    def token_weights(self, tokens: TokenRatios) -> PerToken:
        """Return the weight of each token in its span times the weight of the span; shape `batch time`."""
        with torch.no_grad():
            return self.evaluate(tokens).token_weights

    @override
    def evaluate(self, tokens: TokenRatios) -> EvaluatedAggregator:
        """Return value and weights together, with one evaluation of each aggregator."""
        layout = SpanLayout.of(tokens)
        within = layout.within(tokens)
        inner = self.inner.evaluate(within)
        outer = self.outer.evaluate(self._across(layout, tokens, within, inner.log_aggregate))
        with torch.no_grad():
            per_token = inner.token_weights * layout.spans(outer.token_weights).unsqueeze(-1)
            return EvaluatedAggregator(outer.log_aggregate, layout.tokens(per_token), outer.exponents)

    def _across(
        self, layout: SpanLayout, tokens: TokenRatios, within: TokenRatios, log_values: PerCompletion
    ) -> TokenRatios:
        """Return the context of the outer aggregator, in which spans are the tokens."""
        correction = None
        if within.log_correction is not None:
            with torch.no_grad():
                plain = replace(within, log_ratio=within.uncorrected, log_correction=None)
                correction = layout.across(log_values.detach() - self.inner.log_aggregate(plain))
        mask, advantages = within.response_mask, within.advantages.expand_as(within.log_ratio)
        means = layout.across(log_values)
        spans = layout.across(torch.ones_like(within.lengths, dtype=torch.bool))
        return replace(
            tokens,
            log_ratio=means,
            raw_log_ratio=means.detach(),
            response_mask=spans,
            saturated=layout.across((within.saturated | ~mask).all(dim=-1)),
            lengths=spans.sum(dim=-1),
            old_log_probs=layout.across(masked_sum(within.old_log_probs, mask, within.mean_weights)),
            advantages=layout.across(masked_mean(advantages, mask)),
            log_correction=correction,
            mean_weights=None,
            span_ids=None,
            divergence=None,
            scale=None,
        )


@dataclass(frozen=True)
class SpanLayout:
    """Places of the spans and of their tokens in a context with a row per span, and in one with a column per span.

    Args:
        mask: True on response tokens; shape `batch time`.
        token_places: row and column of each response token among the spans; shape `(tokens,)` each.
        span_places: completion of each span and number of the span within it; shape `(spans,)` each.
        width: tokens of the longest span, at least 1.
        most: spans of the completion that has the most, at least 1.
    """

    mask: PerToken
    token_places: tuple[Tensor, Tensor]
    span_places: tuple[Tensor, Tensor]
    width: int
    most: int

    @classmethod
    def of(cls, tokens: TokenRatios) -> SpanLayout:
        """Return the layout of the spans of a context.

        Raises:
            ValueError: the context has no spans.
        """
        if tokens.span_ids is None:
            raise ValueError(
                "`span_ids` is None, but NestedMean aggregates spans; pass the number of each token's span, "
                "`PolicyBatch(..., span_ids=...)`, shape `batch time`, as RolloutDataModule does with its `spans`."
            )
        mask = tokens.response_mask
        completion = mask.nonzero()[:, 0]
        known, number = torch.unique(tokens.span_ids[mask], return_inverse=True)
        keys, span, lengths = torch.unique(
            completion * len(known) + number, return_inverse=True, return_counts=True
        )  # in the order of the completions
        rows = keys.div(max(len(known), 1), rounding_mode="floor")
        counts = torch.bincount(rows, minlength=len(mask))
        order = span.argsort(stable=True)
        within = torch.empty_like(span)
        within[order] = _numbers(lengths)
        width, most = (int(sizes.max()) if sizes.any() else 1 for sizes in (lengths, counts))
        return cls(mask, (span, within), (rows, _numbers(counts)), width, most)

    def within(self, tokens: TokenRatios) -> TokenRatios:
        """Return the context of the inner aggregator, with a row for each span."""
        rows, _ = self.span_places
        split: dict[str, Any] = {
            name: self._split(value) if value.shape == self.mask.shape else value[rows]
            for name, value in vars(tokens).items()
            if isinstance(value, Tensor)
        }
        lengths = masked_length(split["response_mask"], split.get("mean_weights"))
        return replace(tokens, **{**split, "lengths": lengths, "span_ids": None})

    def across(self, values: PerCompletion) -> PerToken:
        """Arrange values per span, shape `(spans,)`, in a row for each completion; 0 where there is no span."""
        return values.new_zeros(len(self.mask), self.most).index_put(self.span_places, values)

    def spans(self, values: PerToken) -> PerCompletion:
        """Return values, arranged as `across` does, per span; shape `(spans,)`."""
        return values[self.span_places]

    def tokens(self, values: PerToken) -> PerToken:
        """Return values with a row for each span in the places of the tokens; shape `batch time`."""
        return values.new_zeros(self.mask.shape).index_put((self.mask,), values[self.token_places])

    def _split(self, values: PerToken) -> PerToken:
        rows, _ = self.span_places
        return values.new_zeros(len(rows), self.width).index_put(self.token_places, values[self.mask])


def _numbers(sizes: Tensor) -> Tensor:
    """Return 0, 1, ... for each of some groups of these sizes, one group after the other."""
    first = sizes.cumsum(dim=0) - sizes
    return torch.arange(int(sizes.sum()), device=sizes.device) - first.repeat_interleave(sizes)
