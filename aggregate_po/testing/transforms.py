"""Properties of ratio transforms."""

from typing import Any, ClassVar
from unittest import SkipTest

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.nn.functional import pad

from aggregate_po.masked import masked_max
from aggregate_po.testing.compositions import TRANSFORMS, aggregated_by_each, require_gradients
from aggregate_po.testing.contexts import (
    copied,
    in_precision,
    require_joint,
    require_untouched,
    some_rows,
    with_junk,
    with_tokens,
)
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require, require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import Case, batches, junk, token_ratios
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.totals import StepTotals
from aggregate_po.transforms import RatioTransform


def _contexts(contract: "TransformContract") -> SearchStrategy[TokenRatios]:
    """Generate contexts of each place in which the transform works."""
    places = contract.places()
    if not places:
        raise SkipTest(f"{contract.transform!r} works nowhere")
    before = token_ratios(max_time=24)
    strategies = {"token_transform": before, "sequence_transform": before.map(_after_mean)}
    return st.one_of([strategies[place] for place in places])


def _after_mean(tokens: TokenRatios) -> TokenRatios:
    # The maximum rather than an average, so that points exactly on a bound stay there.
    return tokens.after_mean(masked_max(tokens.log_ratio, tokens.response_mask))


def _places(contract: "TransformContract") -> SearchStrategy[str]:
    places = contract.places()
    if not places:
        raise SkipTest(f"{contract.transform!r} works nowhere")
    return st.sampled_from(places)


class TransformContract(Contract):
    """Properties of a ratio transform, before the mean, after it, or in both places.

    A transform that raises ValueError in one place is tested in the other only. The inputs are log ratios up to 80 in
    float64, many of them exactly on common bounds. Results on padding are not tested.

    Attributes:
        transform: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.
        single_rounding: tolerance of closed-form weights in float32.

    Example:
        >>> from aggregate_po import PessimisticClip
        >>> class TestPessimisticClip(TransformContract):
        ...     transform = PessimisticClip(0.2, 0.2)
    """

    transform: RatioTransform
    rounding: ClassVar[float] = 1e-9
    single_rounding: ClassVar[float] = 1e-3

    _attribute = "transform"
    _kind = RatioTransform

    def places(self) -> list[str]:
        """Return the names of the arguments of `PolicyObjective` that accept the transform."""
        zeros, totals = torch.zeros(2, 3, dtype=torch.float64), StepTotals(2, 6, 0.5, 0.25, 0.4)
        tokens = TokenRatios.of(zeros, totals=totals, divergence=zeros, scale=zeros + 1)
        return [
            place
            for place, context in (("token_transform", tokens), ("sequence_transform", _after_mean(tokens)))
            if self._accepts(context)
        ]

    def _accepts(self, context: TokenRatios) -> bool:
        try:
            self.transform(context)
        except ValueError:
            return False
        return True

    def measured(self, ratios: TokenRatios) -> tuple[Tensor, Tensor, Tensor]:
        """Return the detached value, derivative and saturation."""
        transform = self.transform
        return transform(ratios).detach(), transform.derivative(ratios).detach(), transform.saturated(ratios)

    @law()
    def test_works_somewhere(self) -> None:
        """A transform works before the mean, after it, or in both places."""
        require(bool(self.places()), "raises ValueError before the mean and after it")

    @law(ratios=_contexts)
    def test_shapes(self, ratios: TokenRatios) -> None:
        """Value and derivative have shape and precision of `log_ratio`; `saturated` is boolean and has its shape."""
        for context in (ratios, in_precision(ratios, torch.float32)):
            form, dtype = tuple(context.log_ratio.shape), context.log_ratio.dtype
            value, derivative, saturated = self.measured(context)
            require_form("the value", value, form, dtype)
            require_form("derivative", derivative, form, dtype)
            require_form("saturated", saturated, form, torch.bool)

    @law(ratios=_contexts)
    def test_finite(self, ratios: TokenRatios) -> None:
        """Value and derivative are finite up to log ratios of 80, also in float32."""
        for context in (ratios, in_precision(ratios, torch.float32)):
            value, derivative, _ = self.measured(context)
            require_finite(f"the value in {value.dtype}", value, context.response_mask)
            require_finite(f"derivative in {value.dtype}", derivative, context.response_mask)

    @law(ratios=_contexts)
    def test_derivative(self, ratios: TokenRatios) -> None:
        """`derivative` equals the derivative of the value by autograd."""
        expected = RatioTransform.derivative(self.transform, ratios)
        allowed = self.rounding * scale(expected)
        require_close("derivative", self.transform.derivative(ratios), expected, allowed, ratios.response_mask)

    @law(ratios=_contexts)
    def test_saturated(self, ratios: TokenRatios) -> None:
        """`saturated` is True exactly where the derivative is zero."""
        expected = self.transform.derivative(ratios) == 0
        require_close("saturated", self.transform.saturated(ratios), expected, where=ratios.response_mask)

    @law(ratios=_contexts)
    def test_evaluate(self, ratios: TokenRatios) -> None:
        """`evaluate` returns the results of the separate methods; only the value has a graph."""
        context, transform = ratios.requiring_grad(), self.transform
        separate = {
            "value": transform(context),
            "derivative": transform.derivative(context),
            "saturated": transform.saturated(context),
        }
        where = ratios.response_mask
        require_joint(transform.evaluate(context), separate, context.log_ratio, self.rounding, where)

    @law(ratios=_contexts, index=st.integers(0, 23))
    def test_own_derivative_only(self, ratios: TokenRatios, index: int) -> None:
        """A value has zero derivative with respect to the log ratios of other tokens."""
        context = ratios.requiring_grad()
        values = self.transform(context)
        own = torch.arange(values.shape[-1]) == index % values.shape[-1]
        chosen = torch.where(own & ratios.response_mask, values, 0).sum()
        if not chosen.requires_grad:
            return
        (derivative,) = torch.autograd.grad(chosen, context.log_ratio, materialize_grads=True)
        others = ratios.response_mask & ~own
        require_close(f"derivative of value {index % values.shape[-1]} by others", derivative, 0.0, where=others)

    @law(ratios=_contexts, junk=junk(), width=st.integers(0, 3))
    def test_padding_changes_nothing(self, ratios: TokenRatios, junk: float, width: int) -> None:
        """Values on padding, even NaN or infinite, do not change the results on tokens."""
        wide = with_tokens(ratios, lambda values: pad(values, (0, width)))
        dirty, mask = with_junk(wide, junk), ratios.response_mask
        names = ("the value", "derivative", "saturated")
        for name, actual, expected in zip(names, self.measured(dirty), self.measured(ratios), strict=True):
            kept = actual[:, : mask.shape[-1]] if actual.ndim == 2 else actual
            require_close(
                f"{name} with junk on padding", kept, expected, self.rounding * scale(expected.double()), mask
            )

    @law(together=True, ratios=_contexts)
    def test_completions_do_not_see_each_other(self, ratios: TokenRatios) -> None:
        """A completion alone has the same values and derivatives as among others."""
        rows = range(len(ratios.log_ratio))
        alone = zip(*(self.measured(some_rows(ratios, slice(row, row + 1))) for row in rows), strict=True)
        for name, actual, parts in zip(("the value", "derivative"), self.measured(ratios), alone, strict=False):
            expected = torch.cat(parts)
            allowed = self.rounding * scale(expected)
            require_close(f"{name} among others", actual, expected, allowed, ratios.response_mask)

    @law(ratios=_contexts)
    def test_inputs_are_left_untouched(self, ratios: TokenRatios) -> None:
        """The context is not modified, and its tensors do not require gradient."""
        before = copied(ratios)
        self.measured(ratios)
        require_untouched("ratios", ratios, before)

    @law(ratios=_contexts)
    def test_inference_mode(self, ratios: TokenRatios) -> None:
        """In `torch.inference_mode`, value, derivative and saturation are the same."""
        expected = self.measured(ratios)
        with torch.inference_mode():
            actual = self.measured(copied(ratios))
        for name, inside, outside in zip(("the value", "derivative", "saturated"), actual, expected, strict=True):
            require_close(f"{name} in inference mode", inside, outside, where=ratios.response_mask)

    @law(case=batches(), place=_places, other=st.sampled_from(TRANSFORMS))
    def test_gradient_of_the_objective(self, case: Case, place: str, other: RatioTransform | None) -> None:
        """In an objective, the closed-form total weights equal its finite gradient, with any aggregator."""
        objectives = aggregated_by_each(place, self.transform, other)
        require_gradients(objectives, case, self.rounding, self.single_rounding)


def check_transform(transform: RatioTransform, **options: Any) -> KeptLaws:
    """Check all properties of a ratio transform outside a test runner; see `check_aggregator`.

    Args:
        transform: instance to test.
        options: `skip`, `examples`, and attributes of `TransformContract` to change.

    Example:
        >>> from aggregate_po import PessimisticClip
        >>> "saturated" in check_transform(PessimisticClip(0.2, 0.2), examples=5)
        True
    """
    return check(TransformContract, transform, **options)
