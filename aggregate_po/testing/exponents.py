"""Properties of exponent rules."""

from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Generator
from torch.nn.functional import pad
from typing_extensions import override

from aggregate_po.batch import PerCompletion
from aggregate_po.exponents import ExponentRule
from aggregate_po.masked import masked_max, masked_softmax
from aggregate_po.testing.contexts import (
    copied,
    in_precision,
    require_untouched,
    some_rows,
    with_junk,
    with_tokens,
)
from aggregate_po.testing.laws import KeptLaws, check, law
from aggregate_po.testing.mean_weights import MeanWeightContract, weighted
from aggregate_po.testing.reports import require, require_close, require_finite, require_form
from aggregate_po.testing.strategies import generators, junk, token_ratios
from aggregate_po.token_ratios import TokenRatios


class ExponentRuleContract(MeanWeightContract):
    r"""Properties of a rule for the exponent of a power mean.

    The inputs are those of an aggregator. Two exponents are compared by their effect on the weights: their difference
    times the range of the log ratios, and with `mean_weights` times one minus the sum of the squared weights.

    Attributes:
        rule: instance under test.
        rounding: tolerance for rounding errors of an exponent times the range of the log ratios. A search for an
            exponent compares nearly equal numbers, so it is less exact than a mean.

    Example:
        >>> from aggregate_po import ESSMatching
        >>> class TestESSMatching(ExponentRuleContract):
        ...     rule = ESSMatching()
    """

    rule: ExponentRule
    rounding: ClassVar[float] = 1e-6

    _attribute = "rule"
    _kind = ExponentRule

    @override
    def require_same(self, what: str, actual: TokenRatios, expected: TokenRatios) -> None:
        self._require_same(f"the exponents {what}", self.rule(actual), self.rule(expected), expected)

    @law(tokens=weighted(token_ratios))
    def test_shapes(self, tokens: TokenRatios) -> None:
        """The exponents have shape `batch` and the precision of the log ratios."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            require_form("the exponents", self.rule(context), tokens.lengths.shape, context.log_ratio.dtype)

    @law(tokens=weighted(token_ratios))
    def test_finite(self, tokens: TokenRatios) -> None:
        """The exponents are finite up to log ratios of 80, also in float32 and for an empty completion."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            require_finite(f"the exponents in {context.log_ratio.dtype}", self.rule(context))

    @law(tokens=weighted(token_ratios))
    def test_no_graph(self, tokens: TokenRatios) -> None:
        """The exponents are detached."""
        require(not self.rule(tokens.requiring_grad()).requires_grad, "the exponents require gradient")

    @law(tokens=weighted(token_ratios), junk=junk(), width=st.integers(0, 3))
    def test_padding_changes_nothing(self, tokens: TokenRatios, junk: float, width: int) -> None:
        """Values on padding, even NaN or infinite, change nothing."""
        dirty = with_junk(with_tokens(tokens, lambda values: pad(values, (0, width))), junk)
        self._require_same("the exponents with junk on padding", self.rule(dirty), self.rule(tokens), tokens)

    @law(tokens=weighted(token_ratios), generator=generators())
    def test_order_of_tokens(self, tokens: TokenRatios, generator: Generator) -> None:
        """Permuting the tokens does not change the exponents."""
        order = torch.rand(tokens.log_ratio.shape, generator=generator).argsort(dim=-1)
        permuted = with_tokens(tokens, lambda values: values.gather(1, order))
        self._require_same("the exponents of permuted tokens", self.rule(permuted), self.rule(tokens), tokens)

    @law(together=True, tokens=weighted(token_ratios))
    def test_completions_do_not_see_each_other(self, tokens: TokenRatios) -> None:
        """A completion alone has the same exponent as among others."""
        alone = torch.cat([self.rule(some_rows(tokens, slice(row, row + 1))) for row in range(len(tokens.lengths))])
        self._require_same("the exponents among others", self.rule(tokens), alone, tokens)

    @law(tokens=weighted(token_ratios))
    def test_inputs_are_left_untouched(self, tokens: TokenRatios) -> None:
        """The context is not modified, and its tensors do not require gradient."""
        before = copied(tokens)
        self.rule(tokens)
        require_untouched("tokens", tokens, before)

    @law(tokens=weighted(token_ratios))
    def test_inference_mode(self, tokens: TokenRatios) -> None:
        """In `torch.inference_mode`, the exponents are the same."""
        with torch.inference_mode():
            inside = self.rule(copied(tokens))
        require_close("the exponents in inference mode", inside, self.rule(tokens))

    def _require_same(self, what: str, actual: PerCompletion, expected: PerCompletion, tokens: TokenRatios) -> None:
        mask = tokens.response_mask
        width = masked_max(tokens.log_ratio, mask) + masked_max(-tokens.log_ratio, mask)
        if tokens.mean_weights is not None:
            # Very unequal weights may leave one token everything whatever the exponent, which then has few digits.
            powers = expected.unsqueeze(-1) * tokens.log_ratio
            width = width * (1 - masked_softmax(powers, mask, tokens.mean_weights).square().sum(dim=-1))
        require_close(what, actual, expected, self.rounding * (1 + expected.abs()) / width, tokens.lengths > 0)


def check_exponent_rule(rule: ExponentRule, **options: Any) -> KeptLaws:
    """Check all properties of an exponent rule outside a test runner; see `check_aggregator`.

    Args:
        rule: instance to test.
        options: `skip`, `examples`, and attributes of `ExponentRuleContract` to change.

    Example:
        >>> from aggregate_po import ESSMatching
        >>> "no_graph" in check_exponent_rule(ESSMatching(), examples=5)
        True
    """
    return check(ExponentRuleContract, rule, **options)
