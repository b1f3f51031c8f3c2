"""Properties of every part that computes a number for each token from the other tokens of its completion."""

from functools import partial
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from aggregate_po.testing.contexts import (
    copied,
    in_precision,
    require_untouched,
    some_rows,
    with_junk,
    with_tokens,
)
from aggregate_po.testing.laws import Contract, law
from aggregate_po.testing.reports import require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import exact_token_ratios, junk, token_ratios
from aggregate_po.token_ratios import TokenRatios


class PerTokenContract(Contract):
    """Properties that prefix aggregates and suffix weights share."""

    rounding: ClassVar[float] = 1e-9
    single_rounding: ClassVar[float] = 1e-3

    def measured(self, tokens: TokenRatios) -> Tensor:
        """Return the detached result of the part."""
        result: Tensor = self.part(tokens)
        return result.detach()

    @law(tokens=token_ratios())
    def test_shapes(self, tokens: TokenRatios) -> None:
        """The result has shape and precision of `log_ratio`."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            form, dtype = tuple(context.log_ratio.shape), context.log_ratio.dtype
            require_form("the result", self.measured(context), form, dtype)

    @law(tokens=token_ratios())
    def test_finite(self, tokens: TokenRatios) -> None:
        """The result is finite up to log ratios of 80, also in float32."""
        for context in (tokens, in_precision(tokens, torch.float32)):
            require_finite(f"the result in {context.log_ratio.dtype}", self.measured(context), context.response_mask)

    @law(tokens=token_ratios(), junk=junk(), width=st.integers(0, 3))
    def test_padding_changes_nothing(self, tokens: TokenRatios, junk: float, width: int) -> None:
        """Values on padding, even NaN or infinite, do not change the result on tokens."""
        dirty = with_junk(with_tokens(tokens, lambda values: pad(values, (0, width))), junk)
        expected, time = self.measured(tokens), tokens.log_ratio.shape[-1]
        allowed = self.rounding * scale(expected)
        actual = self.measured(dirty)[:, :time]
        require_close("the result with junk on padding", actual, expected, allowed, tokens.response_mask)

    @law(tokens=token_ratios(max_time=24))
    def test_masked_tokens_change_nothing(self, tokens: TokenRatios) -> None:
        """A completion without its masked tokens has the same results on the others."""
        expected = self.measured(tokens)
        actual = torch.zeros_like(expected)
        for row, mask in enumerate(tokens.response_mask):
            if mask.any():
                alone = some_rows(tokens, slice(row, row + 1))
                actual[row, mask] = self.measured(with_tokens(alone, partial(_chosen, mask)))
        allowed = self.rounding * scale(expected)
        require_close("the result without masked tokens", actual, expected, allowed, tokens.response_mask)

    @law(together=True, tokens=token_ratios(max_time=24))
    def test_completions_do_not_see_each_other(self, tokens: TokenRatios) -> None:
        """A completion alone has the same result as among others."""
        expected = [self.measured(some_rows(tokens, slice(row, row + 1))) for row in range(len(tokens.log_ratio))]
        alone = torch.cat(expected)
        allowed = self.rounding * scale(alone)
        require_close("the result among others", self.measured(tokens), alone, allowed, tokens.response_mask)

    @law(tokens=exact_token_ratios())
    def test_single_precision_follows_double(self, tokens: TokenRatios) -> None:
        """In float32, the result equals that of float64 up to rounding."""
        expected = self.measured(tokens)
        actual = self.measured(in_precision(tokens, torch.float32)).double()
        allowed = self.single_rounding * scale(expected)
        require_close("the result in float32", actual, expected, allowed, tokens.response_mask)

    @law(tokens=token_ratios())
    def test_inputs_are_left_untouched(self, tokens: TokenRatios) -> None:
        """The context is not modified, and its tensors do not require gradient."""
        before = copied(tokens)
        self.measured(tokens)
        require_untouched("tokens", tokens, before)

    @law(tokens=token_ratios())
    def test_inference_mode(self, tokens: TokenRatios) -> None:
        """In `torch.inference_mode`, the result is the same."""
        expected = self.measured(tokens)
        with torch.inference_mode():
            actual = self.measured(copied(tokens))
        require_close("the result in inference mode", actual, expected, where=tokens.response_mask)


def _chosen(mask: Tensor, values: Tensor) -> Tensor:
    return values[:, mask]
