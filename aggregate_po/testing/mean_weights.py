"""Properties of parts whose tokens can count by weights: aggregators and exponent rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator

from aggregate_po.aggregators import Mean
from aggregate_po.exponents import ExponentRule
from aggregate_po.testing.contexts import repeated, with_mean_weights
from aggregate_po.testing.laws import Contract, law
from aggregate_po.testing.strategies import generators, token_ratios
from aggregate_po.token_ratios import TokenRatios


def weighted(strategy: Callable[..., SearchStrategy[Any]], **options: Any) -> Callable[[Contract], SearchStrategy[Any]]:
    """Return the inputs of a law, half of them with weights if the part takes them."""
    return lambda contract: strategy(weighted=contract.part.takes_mean_weights, **options)


class MeanWeightContract(Contract):
    """Properties of a part with `takes_mean_weights`."""

    def require_same(self, what: str, actual: TokenRatios, expected: TokenRatios) -> None:
        """Fail unless the part returns the same for each completion of two contexts."""
        raise NotImplementedError

    @law(claimed="takes_mean_weights", tokens=token_ratios(max_time=24), generator=generators())
    def test_weights_count_tokens(self, tokens: TokenRatios, generator: Generator) -> None:
        """A token of weight 2 counts as two tokens, and one of weight 0 as none."""
        counts = torch.randint(4, tokens.log_ratio.shape, generator=generator)
        counted = with_mean_weights(tokens, counts.to(tokens.log_ratio.dtype))
        self.require_same("with weights (expected: with repeated tokens)", counted, repeated(tokens, counts))

    @law(
        claimed_by=(Mean, ExponentRule),
        claimed="takes_mean_weights",
        tokens=token_ratios(weighted=True),
        factor=st.sampled_from([1e-6, 0.1, 3.0]),
    )
    def test_scale_of_the_weights(self, tokens: TokenRatios, factor: float) -> None:
        """A mean does not depend on the scale of its weights, and equal weights give the mean without weights."""
        weights = torch.ones_like(tokens.log_ratio) if tokens.mean_weights is None else tokens.mean_weights
        scaled = with_mean_weights(tokens, factor * weights)
        self.require_same("with weights of another scale", scaled, tokens)
