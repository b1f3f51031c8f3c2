"""Properties of suffix weights."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from aggregate_po.suffixes import SuffixWeight
from aggregate_po.testing.compositions import TRANSFORMS, require_gradients, weighted_by
from aggregate_po.testing.laws import KeptLaws, check, law
from aggregate_po.testing.per_token import PerTokenContract
from aggregate_po.testing.reports import require, require_all, require_close, scale
from aggregate_po.testing.strategies import Case, batches, token_ratios
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms import RatioTransform


class SuffixWeightContract(PerTokenContract):
    """Properties of a suffix weight, on log ratios up to 80 in float64, and in float32 where it must be finite.

    Attributes:
        suffix_weight: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.
        single_rounding: tolerance in float32, of results and of closed-form weights.

    Example:
        >>> from aggregate_po import DiscountedFuture
        >>> class TestDiscountedFuture(SuffixWeightContract):
        ...     suffix_weight = DiscountedFuture()
    """

    suffix_weight: SuffixWeight

    _attribute = "suffix_weight"
    _kind = SuffixWeight

    @law(tokens=token_ratios())
    def test_not_negative(self, tokens: TokenRatios) -> None:
        """A weight is not negative, so that an advantage keeps its sign."""
        weights = self.measured(tokens)
        require_all("the weights", weights >= 0, weights, "0 or more", tokens.response_mask)

    @law(tokens=token_ratios())
    def test_detached(self, tokens: TokenRatios) -> None:
        """A weight is a constant to the gradient."""
        require(not self.part(tokens.requiring_grad()).requires_grad, "the weights require gradient")

    @law(tokens=token_ratios(max_time=24), other=st.floats(-80, 80), position=st.integers(0, 23))
    def test_earlier_tokens_change_nothing(self, tokens: TokenRatios, other: float, position: int) -> None:
        """Tokens before a position, with their number and log ratios, do not change the weights from it on."""
        time = tokens.log_ratio.shape[-1]
        position = position % time
        expected, mask = self.measured(tokens), tokens.response_mask
        later = torch.arange(time) >= position
        changed = torch.where(later, tokens.log_ratio, torch.where(mask, other, 0))
        fewer = mask & later
        for name, context in {
            "other earlier tokens": replace(tokens, log_ratio=changed, raw_log_ratio=changed),
            "no earlier tokens": replace(
                tokens, response_mask=fewer, lengths=fewer.sum(dim=-1), saturated=tokens.saturated & fewer
            ),
        }.items():
            require_close(
                f"weights with {name}", self.measured(context), expected, self.rounding * scale(expected), fewer
            )

    @law(case=batches(), before=st.sampled_from(TRANSFORMS))
    def test_gradient_of_the_objective(self, case: Case, before: RatioTransform | None) -> None:
        """In an objective, the closed-form total weights equal its finite gradient."""
        require_gradients(weighted_by(self.part, before), case, self.rounding, self.single_rounding)


def check_suffix_weight(suffix_weight: SuffixWeight, **options: Any) -> KeptLaws:
    """Check all properties of a suffix weight outside a test runner; see `check_aggregator`.

    Args:
        suffix_weight: instance to test.
        options: `skip`, `examples`, and attributes of `SuffixWeightContract` to change.

    Example:
        >>> from aggregate_po import DiscountedFuture
        >>> "earlier_tokens_change_nothing" in check_suffix_weight(DiscountedFuture(), examples=5)
        True
    """
    return check(SuffixWeightContract, suffix_weight, **options)
