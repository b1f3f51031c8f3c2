"""Properties of aggregators."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Generator
from torch.nn.functional import pad
from typing_extensions import override

from aggregate_po.aggregators import HomogeneousMean, Mean, TokenAggregator
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.normalizers import TokenMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.testing.compositions import TRANSFORMS, require_gradients, transformed_by_each
from aggregate_po.testing.contexts import (
    copied,
    differentiate,
    in_precision,
    require_additive,
    require_gradient,
    require_joint,
    require_untouched,
    scale_of,
    some_rows,
    with_junk,
    with_tokens,
)
from aggregate_po.testing.laws import KeptLaws, check, law
from aggregate_po.testing.mean_weights import MeanWeightContract, weighted
from aggregate_po.testing.reports import require, require_all, require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import Case, batches, exact_token_ratios, generators, junk, token_ratios
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms import PessimisticClip, RatioTransform


class AggregatorContract(MeanWeightContract):
    """Properties of every aggregator, and further ones of a `Mean` and of a `HomogeneousMean`.

    The inputs are log ratios up to 80, with ragged masks, holes, empty completions, and weights where they are taken.

    Attributes:
        aggregator: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1. Increase it for a formula
            that loses digits, such as the inverse of a generator.
        single_rounding: tolerance of float32 against float64.

    Example:
        >>> from aggregate_po import GeometricMean
        >>> class TestGeometricMean(AggregatorContract):
        ...     aggregator = GeometricMean()
    """

    aggregator: TokenAggregator
    rounding: ClassVar[float] = 1e-9
    single_rounding: ClassVar[float] = 1e-4

    _attribute = "aggregator"
    _kind = TokenAggregator
    _first = ("test_shapes", "test_lets_gradient_through")

    def measured(self, tokens: TokenRatios) -> tuple[PerCompletion, PerToken]:
        """Return the detached value and weights."""
        return self.aggregator.log_aggregate(tokens).detach(), self.aggregator.token_weights(tokens).detach()

    @override
    def require_same(self, what: str, actual: TokenRatios, expected: TokenRatios) -> None:
        (value, _), (expected_value, _) = self.measured(actual), self.measured(expected)
        require_close(f"log_aggregate {what}", value, expected_value, self.rounding * scale(expected_value))

    @law(tokens=weighted(token_ratios))
    def test_shapes(self, tokens: TokenRatios) -> None:
        """The value has shape `batch`, the weights have shape `batch time`, both in the precision of the log ratios."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            value, weights = self.measured(context)
            require_form("log_aggregate", value, tokens.lengths.shape, context.log_ratio.dtype)
            require_form("token_weights", weights, tokens.log_ratio.shape, context.log_ratio.dtype)

    @law(tokens=weighted(token_ratios))
    def test_lets_gradient_through(self, tokens: TokenRatios) -> None:
        """The value is attached to the graph of the log ratios, also for an empty completion."""
        value = self.aggregator.log_aggregate(tokens.requiring_grad())
        require(value.requires_grad, "log_aggregate lets no gradient through: its result does not require it")

    @law(tokens=weighted(token_ratios))
    def test_finite(self, tokens: TokenRatios) -> None:
        """Value and weights are finite up to log ratios of 80, also in float32 and for an empty completion."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            value, weights = self.measured(context)
            require_finite(f"log_aggregate in {value.dtype}", value)
            require_finite(f"token_weights in {weights.dtype}", weights)

    @law(tokens=weighted(token_ratios))
    def test_weights_are_the_derivative(self, tokens: TokenRatios) -> None:
        """`token_weights` equals the derivative of `log_aggregate` by autograd."""
        expected = TokenAggregator.token_weights(self.aggregator, tokens)
        weights = self.aggregator.token_weights(tokens)
        require_close("token_weights", weights, expected, self.rounding * scale(expected), tokens.response_mask)

    @law(tokens=weighted(token_ratios))
    def test_evaluate(self, tokens: TokenRatios) -> None:
        """`evaluate` returns the results of `log_aggregate` and `token_weights`; only the value has a graph."""
        context, aggregator = tokens.requiring_grad(), self.aggregator
        separate = {
            "log_aggregate": aggregator.log_aggregate(context),
            "token_weights": aggregator.token_weights(context),
        }
        require_joint(aggregator.evaluate(context), separate, context.log_ratio, self.rounding, tokens.response_mask)

    @law(tokens=weighted(token_ratios), junk=junk(), width=st.integers(0, 3))
    def test_padding_changes_nothing(self, tokens: TokenRatios, junk: float, width: int) -> None:
        """Values on padding, even NaN or infinite, change nothing, and the weights there are 0."""
        value, weights = self.measured(tokens)
        wide = with_tokens(tokens, lambda values: pad(values, (0, width)))
        dirty_value, dirty_weights = self.measured(with_junk(wide, junk))
        require_close("log_aggregate with junk on padding", dirty_value, value, self.rounding * scale(value))
        mask = wide.response_mask
        require_close("weights on padding", dirty_weights, 0.0, where=~mask)
        expected = pad(weights, (0, width))
        require_close(
            "token_weights with junk on padding", dirty_weights, expected, self.rounding * scale(expected), mask
        )

    @law(tokens=weighted(token_ratios), generator=generators())
    def test_order_of_tokens(self, tokens: TokenRatios, generator: Generator) -> None:
        """Permuting the tokens permutes their weights and does not change the value."""
        order = torch.rand(tokens.log_ratio.shape, generator=generator).argsort(dim=-1)
        value, weights = self.measured(tokens)
        permuted_value, permuted_weights = self.measured(with_tokens(tokens, lambda values: values.gather(1, order)))
        require_close("log_aggregate of permuted tokens", permuted_value, value, self.rounding * scale(value))
        expected = weights.gather(1, order)
        require_close("permuted token_weights", permuted_weights, expected, self.rounding * scale(expected))

    @law(together=True, tokens=weighted(token_ratios))
    def test_completions_do_not_see_each_other(self, tokens: TokenRatios) -> None:
        """A completion alone has the same value and weights as among others."""
        value, weights = self.measured(tokens)
        alone = [self.measured(some_rows(tokens, slice(row, row + 1))) for row in range(len(value))]
        require_close("log_aggregate alone", torch.cat([one[0] for one in alone]), value, self.rounding * scale(value))
        expected = torch.cat([one[1] for one in alone])
        require_close("token_weights among others", weights, expected, self.rounding * scale(expected))

    @law(tokens=weighted(token_ratios))
    def test_inputs_are_left_untouched(self, tokens: TokenRatios) -> None:
        """The context is not modified, and its tensors do not require gradient."""
        before = copied(tokens)
        self.measured(tokens)
        require_untouched("tokens", tokens, before)

    @law(tokens=weighted(token_ratios))
    def test_inference_mode(self, tokens: TokenRatios) -> None:
        """In `torch.inference_mode`, value and weights are the same."""
        value, weights = self.measured(tokens)
        with torch.inference_mode():
            inside_value, inside_weights = self.measured(copied(tokens))
        require_close("log_aggregate in inference mode", inside_value, value)
        require_close("token_weights in inference mode", inside_weights, weights)

    @law(tokens=weighted(exact_token_ratios))
    def test_single_precision_follows_double(self, tokens: TokenRatios) -> None:
        """In float32, value and weights equal those of float64 up to rounding."""
        value, weights = self.measured(tokens)
        single_value, single_weights = self.measured(in_precision(tokens, torch.float32))
        require_close("log_aggregate in float32", single_value.double(), value, self.single_rounding * scale(value))
        # Relative to the largest weight, whose rounding error also affects the small ones.
        allowed = self.single_rounding * scale(weights).amax(dim=-1, keepdim=True)
        require_close("token_weights in float32", single_weights.double(), weights, allowed)

    @law(case=weighted(batches), before=st.sampled_from(TRANSFORMS))
    def test_gradient_of_the_objective(self, case: Case, before: RatioTransform | None) -> None:
        """In an objective, the closed-form total weights equal its finite gradient, among any transforms."""
        objectives = transformed_by_each(self.aggregator, before)
        require_gradients(objectives, case, self.rounding, self.single_rounding)

    @law(together=True, case=weighted(batches), boundary=st.integers(1, 4))
    def test_splitting_the_step(self, case: Case, boundary: int) -> None:
        """Splitting an optimizer step into micro-batches changes neither the value of an objective nor its weights."""
        objective = PolicyObjective(self.aggregator, PessimisticClip(0.2, 0.28), normalizer=TokenMean())
        require_additive(objective, *case, boundary, self.rounding)

    @law(together=True, case=weighted(batches), before=st.sampled_from(TRANSFORMS), generator=generators())
    def test_advantages_per_token(self, case: Case, before: RatioTransform | None, generator: Generator) -> None:
        """With an advantage per token, weights equal the gradient; equal ones give what that of the completion does."""
        log_probs, batch = case
        objective = PolicyObjective(self.aggregator, before)
        different = torch.randn(log_probs.shape, generator=generator, dtype=torch.float64)
        require_gradient(objective, log_probs, replace(batch, advantages=different), self.rounding)
        expected, actual = (
            differentiate(objective, log_probs, replace(batch, advantages=advantages))
            for advantages in (batch.advantages, batch.advantages.unsqueeze(-1).expand_as(log_probs))
        )
        size = scale_of(expected[2])
        allowed = self.rounding * (size.sum() * log_probs.shape[1] + expected[0].abs())
        require_close("value with equal advantages of tokens", actual[0], expected[0], allowed)
        require_close("gradient with equal advantages of tokens", actual[1], expected[1], self.rounding * size)

    @law(claimed_by=Mean, tokens=weighted(token_ratios, empty_rows=False), level=st.floats(-80, 80))
    def test_mean_of_a_constant(self, tokens: TokenRatios, level: float) -> None:
        """A constant is its own mean."""
        constant = replace(tokens, log_ratio=torch.full_like(tokens.log_ratio, level))
        allowed = self.rounding * (1 + abs(level))
        require_close("log_aggregate of a constant", self.aggregator.log_aggregate(constant), level, allowed)

    @law(claimed_by=Mean, tokens=weighted(token_ratios, empty_rows=False))
    def test_mean_is_between_the_extremes(self, tokens: TokenRatios) -> None:
        """A mean lies between the smallest and the largest token."""
        mean, mask = self.aggregator.log_aggregate(tokens), tokens.response_mask
        low = torch.where(mask, tokens.log_ratio, math.inf).amin(dim=-1)
        high = torch.where(mask, tokens.log_ratio, -math.inf).amax(dim=-1)
        slack = self.rounding * scale(torch.maximum(low.abs(), high.abs()))
        require_all("log_aggregate", (mean >= low - slack), mean, "at least the smallest log ratio")
        require_all("log_aggregate", (mean <= high + slack), mean, "at most the largest log ratio")

    @law(claimed_by=HomogeneousMean, tokens=weighted(token_ratios, limit=40), shift=st.floats(-40, 40))
    def test_common_factor_passes_through(self, tokens: TokenRatios, shift: float) -> None:
        """Multiplying all ratios by a factor multiplies a homogeneous mean by it."""
        shifted = replace(tokens, log_ratio=tokens.log_ratio + shift)
        moved, value = self.aggregator.log_aggregate(shifted), self.aggregator.log_aggregate(tokens)
        require_close("log_aggregate", moved, value + shift, self.rounding * (81 + value.abs()), tokens.lengths > 0)

    @law(claimed_by=HomogeneousMean, tokens=weighted(token_ratios))
    def test_weights_sum_to_one(self, tokens: TokenRatios) -> None:
        """The weights of a homogeneous mean sum to one."""
        weights = self.aggregator.token_weights(tokens)
        allowed = self.rounding * scale(weights).amax(dim=-1)
        require_close("sum of token_weights", weights.sum(dim=-1), (tokens.lengths > 0).to(weights.dtype), allowed)


def check_aggregator(aggregator: TokenAggregator, **options: Any) -> KeptLaws:
    """Check all properties of an aggregator outside a test runner.

    Args:
        aggregator: instance to test.
        options: `skip`, names of properties not to check; `examples`, number of inputs per property; and attributes of
            `AggregatorContract` to change, such as `rounding`.

    Returns:
        Names of the properties that hold; printed, with their descriptions.

    Raises:
        AssertionError: properties do not hold; the message has a counterexample for each.

    Example:
        >>> from aggregate_po import GeometricMean
        >>> "weights_sum_to_one" in check_aggregator(GeometricMean(), examples=5)
        True
    """
    return check(AggregatorContract, aggregator, **options)
