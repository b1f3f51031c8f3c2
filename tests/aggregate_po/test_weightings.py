"""Weights of tokens by entropy and by position."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import PositionWeights, TokenWeighting, TopEntropy
from tests.aggregate_po.worked_example import close
from tests.contracts.strategies import generators

MASK = torch.tensor([[True, True, False, True], [True, True, True, False]])
ENTROPIES = torch.tensor([[0.1, 2.0, math.nan, 0.3], [1.0, 0.0, 0.2, math.inf]])


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.2, [[False, True, False, False], [True, False, False, False]]),
        (0.4, [[False, True, False, True], [True, False, False, False]]),
        (0.5, [[False, True, False, True], [True, False, False, False]]),
        (1.0, [[True, True, False, True], [True, True, True, False]]),
        (1e-9, [[False, True, False, False], [False, False, False, False]]),
    ],
)
def test_tokens_of_highest_entropy(share, kept):
    """Sorted 0, 0.1, 0.2, 0.3, 1, 2: quantile 0.8 is at place 4, counted from 0; 0.6 at 3; 0.5 between 2 and 3."""
    assert TopEntropy(share)(MASK, ENTROPIES).tolist() == kept


@given(st.integers(1, 400), st.integers(1, 100), generators())
def test_threshold_is_the_quantile(tokens, percent, generator):
    """As `torch.quantile` finds it, which TRL calls with `1 - top_entropy_quantile`."""
    entropies = torch.rand(1, tokens, generator=generator, dtype=torch.float64)
    kept = TopEntropy(percent / 100)(torch.ones(1, tokens).bool(), entropies)
    quantile = torch.quantile(entropies, (100 - percent) / 100)
    assert torch.equal(kept, entropies >= quantile - 1e-12)


def test_rounding_does_not_move_the_quantile():
    """(1 - 0.7) * 10 is above 3 by rounding, and 8 of 11 entropies are at or above place 3."""
    assert (1 - 0.7) * 10 > 3
    assert TopEntropy(0.7)(torch.ones(1, 11).bool(), torch.rand(1, 11)).sum() == 8


def test_ties_are_kept_and_no_token_is_no_error():
    assert TopEntropy(0.1)(torch.ones(1, 3).bool(), torch.zeros(1, 3)).all()
    assert not TopEntropy(0.1)(torch.zeros(1, 3).bool(), torch.zeros(1, 3)).any()


def test_positions_skip_masked_tokens():
    """1, 1/2, 1/3 over 11/6, times the length 3."""
    weights = PositionWeights(power=-1.0)(MASK, None)
    shares = [18 / 11, 9 / 11, 6 / 11]
    close(weights[MASK], [*shares, *shares], tolerance=1e-6)


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [
        (PositionWeights(base=0.5), [12 / 7, 6 / 7, 3 / 7]),
        (PositionWeights(base=2.0), [3 / 7, 6 / 7, 12 / 7]),
        (PositionWeights(power=2.0), [3 / 14, 12 / 14, 27 / 14]),
        (PositionWeights(power=1.0, base=0.5), [12 / 11, 12 / 11, 9 / 11]),
        (PositionWeights(), [1.0, 1.0, 1.0]),
    ],
)
def test_weights_by_position(weighting, weights):
    close(weighting(torch.ones(1, 3).bool(), None), [weights], tolerance=1e-6)


@given(st.integers(0, 40), st.sampled_from([PositionWeights(power=-0.5, base=0.9), PositionWeights(40.0)]))
def test_weights_by_position_sum_to_the_length(length, weighting):
    weights = weighting(torch.arange(40).unsqueeze(0) < length, None)
    close(weights[:, :length].sum(), length, tolerance=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopEntropy(0.0), r"`share` is 0\.0; pass the fraction of tokens"),
        (lambda: TopEntropy(1.5), r"`share` is 1\.5; pass the fraction of tokens"),
        (lambda: TopEntropy(math.nan), "`share` is nan; pass the fraction of tokens"),
        (lambda: PositionWeights(base=0.0), r"`base` is 0\.0; pass a number above 0"),
        (lambda: PositionWeights(power=math.nan), "`power` is nan"),
        (lambda: TopEntropy()(MASK, None), "`entropies` is None, but TopEntropy ranks tokens by them"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_only_the_rule_of_entropies_needs_them():
    assert TopEntropy().needs_entropies
    assert not PositionWeights().needs_entropies
    assert TokenWeighting.needs_entropies.fget(PositionWeights()) is False
