"""Properties of rules for the weights of tokens."""

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Generator, Tensor
from torch.nn.functional import pad

from aggregate_po.shapes import PerToken
from aggregate_po.testing.contexts import copied, require_untouched
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import LawBroken, require, require_all, require_close
from aggregate_po.testing.strategies import generators, junk, masks, sizes
from aggregate_po.weightings import TokenWeighting
from aggregate_po.weights import LARGEST_WEIGHT


class _Tokens(NamedTuple):
    response_mask: PerToken
    entropies: PerToken | None


@st.composite
def _tokens(draw: DrawFn, needs_entropies: bool) -> _Tokens:
    """Generate the tokens of a rollout: entropies up to 12 nats, many of them equal or 0."""
    batch, time = draw(sizes(5)), draw(sizes(64))
    mask, generator = draw(masks(batch, time)), draw(generators())
    palette = torch.tensor(draw(st.lists(st.floats(0, 12, width=32), min_size=1, max_size=5)), dtype=torch.float64)
    entropies = palette[torch.randint(len(palette), (batch, time), generator=generator)]
    return _Tokens(mask, entropies if needs_entropies else None)


def _rollouts(contract: "TokenWeightingContract") -> SearchStrategy[_Tokens]:
    return _tokens(contract.weighting.needs_entropies)


class TokenWeightingContract(Contract):
    """Properties of a rule for the weights of tokens.

    The inputs are masks of up to five completions, some of them empty, and entropies if the rule needs them.

    Attributes:
        weighting: instance under test.

    Example:
        >>> from aggregate_po import TopEntropy
        >>> class TestTopEntropy(TokenWeightingContract):
        ...     weighting = TopEntropy()
    """

    weighting: TokenWeighting

    _attribute = "weighting"
    _kind = TokenWeighting

    def measured(self, tokens: _Tokens) -> PerToken:
        """Return the weights as numbers, 0 on padding."""
        return torch.where(tokens.response_mask, self.weighting(*tokens).double(), 0)

    @law(tokens=_rollouts)
    def test_shapes(self, tokens: _Tokens) -> None:
        """The weights have shape `batch time`, and are booleans or floating-point numbers."""
        weights = self.weighting(*tokens)
        if not isinstance(weights, Tensor):
            raise LawBroken(f"the weights: {type(weights).__name__}, not a tensor")
        found = f"the weights: shape {tuple(weights.shape)} and type {weights.dtype}"
        require(weights.shape == tokens.response_mask.shape, f"{found}, not {tuple(tokens.response_mask.shape)}")
        require(weights.dtype == torch.bool or weights.is_floating_point(), f"{found}, neither boolean nor floating")

    @law(tokens=_rollouts)
    def test_range(self, tokens: _Tokens) -> None:
        """The weights of response tokens are from 0 to a million."""
        weights = self.measured(tokens)
        require_all("the weights", (weights >= 0) & (weights <= LARGEST_WEIGHT), weights, "from 0 to a million")

    @law(tokens=_rollouts, junk=junk(), width=st.integers(0, 3))
    def test_padding_changes_nothing(self, tokens: _Tokens, junk: float, width: int) -> None:
        """Entropies on padding, even NaN or infinite, and the width of the padding change nothing."""
        mask = pad(tokens.response_mask, (0, width))
        entropies = None if tokens.entropies is None else torch.where(mask, pad(tokens.entropies, (0, width)), junk)
        dirty = self.measured(_Tokens(mask, entropies))
        require_close("the weights with junk on padding", dirty, pad(self.measured(tokens), (0, width)), 1e-6)

    @law(together=True, tokens=_rollouts, generator=generators())
    def test_order_of_completions(self, tokens: _Tokens, generator: Generator) -> None:
        """Permuting the completions permutes their weights."""
        order = torch.randperm(len(tokens.response_mask), generator=generator)
        permuted = _Tokens(*(None if values is None else values[order] for values in tokens))  # type: ignore[arg-type]
        require_close("the permuted weights", self.measured(permuted), self.measured(tokens)[order], 1e-6)

    @law(tokens=_rollouts)
    def test_inputs_are_left_untouched(self, tokens: _Tokens) -> None:
        """Mask and entropies are not modified."""
        before = copied(tokens)
        self.weighting(*tokens)
        for name, values, earlier in zip(tokens._fields, tokens, before, strict=True):
            require_untouched(name, values, earlier)


def check_token_weighting(weighting: TokenWeighting, **options: Any) -> KeptLaws:
    """Check all properties of a rule for the weights of tokens outside a test runner; see `check_aggregator`.

    Args:
        weighting: instance to test.
        options: `skip`, `examples`, and attributes of `TokenWeightingContract` to change.

    Example:
        >>> from aggregate_po import TopEntropy
        >>> "order_of_completions" in check_token_weighting(TopEntropy(), examples=5)
        True
    """
    return check(TokenWeightingContract, weighting, **options)
