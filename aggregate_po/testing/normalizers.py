"""Properties of normalizers."""

from typing import Any, ClassVar, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Generator, Tensor

from aggregate_po.normalizers import Normalizer
from aggregate_po.testing.contexts import copied, require_untouched
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require_all, require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import generators, progress
from aggregate_po.totals import StepTotals


class _Step(NamedTuple):
    lengths: Tensor
    totals: StepTotals


@st.composite
def _steps(draw: DrawFn) -> _Step:
    """Generate lengths of some completions, and totals of the step that contains them."""
    numbers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    lengths = torch.tensor(numbers, dtype=torch.float64)
    others = max(draw(st.integers(0, 100)), int(not lengths.any()))  # a step without tokens has its own property
    completions = int((lengths > 0).sum()) + others
    tokens = int(lengths.sum()) + others * draw(st.integers(1, 40))
    return _Step(lengths, StepTotals(completions, tokens, draw(progress()), reward_mean=0.25, reward_std=0.4))


class NormalizerContract(Contract):
    """Properties of a normalizer.

    The inputs are floating-point lengths from 0 to 40 of some completions of an optimizer step, and the totals of the
    whole step.

    Attributes:
        normalizer: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.

    Example:
        >>> from aggregate_po import TokenMean
        >>> class TestTokenMean(NormalizerContract):
        ...     normalizer = TokenMean()
    """

    normalizer: Normalizer
    rounding: ClassVar[float] = 1e-9

    _attribute = "normalizer"
    _kind = Normalizer

    @law(case=_steps())
    def test_shapes(self, case: _Step) -> None:
        """The weights have shape `batch` and the precision of the lengths."""
        lengths, totals = case
        for given in (lengths, lengths.float()):
            require_form("the weights", self.normalizer(given, totals), given.shape, given.dtype)

    @law(case=_steps())
    def test_finite_and_not_negative(self, case: _Step) -> None:
        """The weights are finite and not negative."""
        weights = self.normalizer(*case)
        require_finite("the weights", weights)
        require_all("the weights", weights >= 0, weights, "0 or more")

    @law(empty_rows=st.integers(1, 4))
    def test_step_without_tokens(self, empty_rows: int) -> None:
        """The weights of a step without any token are finite."""
        require_finite(
            "the weights", self.normalizer(torch.zeros(empty_rows).double(), StepTotals(0, 0, 0.0, 0.0, 0.0))
        )
        none = torch.zeros((), dtype=torch.int64)
        totals = StepTotals(none, none, 0.0, 0.0, 0.0)
        require_finite("the weights, by totals as tensors", self.normalizer(torch.zeros(empty_rows).double(), totals))

    @law(together=True, case=_steps(), generator=generators())
    def test_only_the_totals_divide(self, case: _Step, generator: Generator) -> None:
        """A completion's weight depends on its own length and the totals only, not on how the step is split."""
        lengths, totals = case
        weights = self.normalizer(lengths, totals)
        order = torch.randperm(len(lengths), generator=generator)
        alone = torch.cat([self.normalizer(lengths[row : row + 1], totals) for row in range(len(lengths))])
        require_close("weights in one batch (expected: one by one)", weights, alone, self.rounding * scale(alone))
        permuted = self.normalizer(lengths[order], totals)
        require_close("permuted weights", permuted, weights[order], self.rounding * scale(weights))

    @law(case=_steps())
    def test_totals_of_any_type(self, case: _Step) -> None:
        """Totals as Python numbers, integer tensors or floating-point tensors give the same weights."""
        lengths, totals = case
        expected = self.normalizer(lengths, totals)
        for dtype in (torch.int64, torch.float64):
            counts = {name: torch.tensor(getattr(totals, name), dtype=dtype) for name in ("completions", "tokens")}
            weights = self.normalizer(lengths, StepTotals(**{**vars(totals), **counts}))
            require_close(f"weights by totals of {dtype}", weights, expected, self.rounding * scale(expected))

    @law(case=_steps())
    def test_inputs_are_left_untouched(self, case: _Step) -> None:
        """Lengths and totals are not modified."""
        lengths, totals = case
        tensors = StepTotals(torch.tensor(totals.completions), torch.tensor(totals.tokens), 0.5, 0.25, 0.4)
        before = copied(lengths), copied(tensors)
        self.normalizer(lengths, tensors)
        require_untouched("lengths", lengths, before[0])
        require_untouched("totals", tensors, before[1])


def check_normalizer(normalizer: Normalizer, **options: Any) -> KeptLaws:
    """Check all properties of a normalizer outside a test runner; see `check_aggregator`.

    Args:
        normalizer: instance to test.
        options: `skip`, `examples`, and attributes of `NormalizerContract` to change.

    Example:
        >>> from aggregate_po import TokenMean
        >>> "only_the_totals_divide" in check_normalizer(TokenMean(), examples=5)
        True
    """
    return check(NormalizerContract, normalizer, **options)
