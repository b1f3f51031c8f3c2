"""Properties of prefix aggregates."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from aggregate_po.prefixes import PrefixAggregate
from aggregate_po.testing.compositions import TRANSFORMS, prefixed_by_each, require_gradients
from aggregate_po.testing.laws import KeptLaws, check, law
from aggregate_po.testing.per_token import PerTokenContract
from aggregate_po.testing.reports import require_close, scale
from aggregate_po.testing.strategies import Case, batches, generators, token_ratios
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms import RatioTransform


class PrefixAggregateContract(PerTokenContract):
    """Properties of a prefix aggregate, on log ratios up to 80 in float64, and in float32 where they must be finite.

    Attributes:
        prefix: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.
        single_rounding: tolerance in float32, of results and of closed-form weights.

    Example:
        >>> from aggregate_po import PrefixProduct
        >>> class TestPrefixProduct(PrefixAggregateContract):
        ...     prefix = PrefixProduct()
    """

    prefix: PrefixAggregate

    _attribute = "prefix"
    _kind = PrefixAggregate

    @law(tokens=token_ratios(max_time=24), weights=generators())
    def test_derivative_is_one(self, tokens: TokenRatios, weights: torch.Generator) -> None:
        """An aggregate has derivative one in its token's own log ratio and zero in all others."""
        context, mask = tokens.requiring_grad(), tokens.response_mask
        factors = torch.rand(mask.shape, generator=weights, dtype=torch.float64)
        weighted = torch.where(mask, factors * self.part(context), 0).sum()
        (gradient,) = torch.autograd.grad(weighted, context.log_ratio, materialize_grads=True)
        require_close("gradient of the weighted sum", gradient, torch.where(mask, factors, 0), self.rounding)

    @law(tokens=token_ratios(max_time=24), others=token_ratios(max_time=24), position=st.integers(0, 23))
    def test_later_tokens_change_nothing(self, tokens: TokenRatios, others: TokenRatios, position: int) -> None:
        """Tokens after a position, with their number and log ratios, do not change the aggregates up to it."""
        rows, time = tokens.log_ratio.shape
        position = position % time
        up_to = torch.arange(time) <= position
        noise = torch.zeros_like(tokens.log_ratio)
        shared = (slice(0, min(rows, len(others.log_ratio))), slice(0, min(time, others.log_ratio.shape[-1])))
        noise[shared] = others.log_ratio[shared]
        expected = self.measured(tokens)
        changed = torch.where(up_to, tokens.log_ratio, noise)
        for name, context in {
            "other later tokens": replace(tokens, log_ratio=changed, raw_log_ratio=changed),
            "no later tokens": with_mask(tokens, tokens.response_mask & up_to),
        }.items():
            allowed, where = self.rounding * scale(expected), tokens.response_mask & up_to
            require_close(f"aggregates with {name}", self.measured(context), expected, allowed, where)

    @law(case=batches(), before=st.sampled_from(TRANSFORMS))
    def test_gradient_of_the_objective(self, case: Case, before: RatioTransform | None) -> None:
        """In an objective, the closed-form total weights equal its finite gradient, with any aggregator."""
        require_gradients(prefixed_by_each(self.part, before), case, self.rounding, self.single_rounding)


def with_mask(tokens: TokenRatios, mask: Tensor) -> TokenRatios:
    """Return the context of completions that have other response tokens."""
    return replace(tokens, response_mask=mask, lengths=mask.sum(dim=-1), saturated=tokens.saturated & mask)


def check_prefix_aggregate(prefix: PrefixAggregate, **options: Any) -> KeptLaws:
    """Check all properties of a prefix aggregate outside a test runner; see `check_aggregator`.

    Args:
        prefix: instance to test.
        options: `skip`, `examples`, and attributes of `PrefixAggregateContract` to change.

    Example:
        >>> from aggregate_po import PrefixProduct
        >>> "later_tokens_change_nothing" in check_prefix_aggregate(PrefixProduct(), examples=5)
        True
    """
    return check(PrefixAggregateContract, prefix, **options)
