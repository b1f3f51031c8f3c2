"""The cross-entropy method: maxima that are known, elites by hand, and where shared elites differ."""

import pytest
import torch

from experiments.classical.control.cross_entropy import CrossEntropy

PEAKS = torch.tensor([[0.3, -0.2], [-0.4, 0.1], [0.0, 0.25]])


def quadratic(candidates):
    return -(candidates - PEAKS).square().sum(dim=-1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_each_state_finds_the_maximum_of_its_quadratic():
    found = CrossEntropy().maximum(quadratic, torch.zeros(3, 2))
    torch.testing.assert_close(found, PEAKS, atol=0.01, rtol=0)


def test_shared_elites_compromise_where_states_are_many():
    """The mean score of 64 states hardly tells which candidate is good for one of them."""
    peaks = torch.linspace(-0.6, 0.6, 64).unsqueeze(-1)
    errors = [
        (CrossEntropy(shared=shared).maximum(lambda c: -(c - peaks).square().sum(-1), torch.zeros(64, 1)) - peaks)
        .abs()
        .mean()
        .item()
        for shared in (False, True)
    ]
    assert errors[0] < 0.01
    assert errors[1] > 0.08


def test_with_one_state_elites_are_shared_anyway():
    def found(shared):
        torch.manual_seed(1)
        return CrossEntropy(shared=shared).maximum(lambda c: -(c - 0.4).square().sum(-1), torch.zeros(1, 1))

    torch.testing.assert_close(found(True), found(False))


def test_elites_by_hand():
    """Four candidates of two states; their mean scores are 2, 3, 2.5 and 0.5, so candidates 1 and 2 are shared."""
    sample = torch.arange(8.0).reshape(4, 2, 1)
    values = torch.tensor([[4.0, 0.0], [3.0, 3.0], [0.0, 5.0], [1.0, 0.0]])
    own = CrossEntropy(candidates=4, elites=2)._elites(sample, values)
    assert sorted(own[:, 0].flatten().tolist()) == [0, 2]
    assert sorted(own[:, 1].flatten().tolist()) == [3, 5]
    shared = CrossEntropy(candidates=4, elites=2, shared=True)._elites(sample, values)
    assert sorted(shared[:, 0].flatten().tolist()) == [2, 4]
    assert sorted(shared[:, 1].flatten().tolist()) == [3, 5]


def test_candidates_are_truncated_and_refitted_to_the_elites():
    seen = []

    def score(candidates):
        seen.append(candidates)
        return candidates.sum(dim=-1)

    search = CrossEntropy(iterations=2, candidates=1000, elites=2, scale=0.5, truncation=2.0)
    found = search.maximum(score, torch.tensor([[1.0]]))
    first, second = (sample.flatten() for sample in seen)
    assert first.min() >= 0
    assert first.max() <= 2
    assert first.mean().item() == pytest.approx(1, abs=0.05)
    elites = first.topk(2).values
    assert (second - elites.mean()).abs().max() <= 2 * elites.std() + 1e-6
    assert found.item() == pytest.approx(second.topk(2).values.mean().item())


@pytest.mark.parametrize("elites", [1, 101])
def test_numbers_of_elites_without_a_scale_are_refused(elites):
    with pytest.raises(ValueError, match=f"`elites` is {elites}; pass at least 2, for a scale, and at most 100"):
        CrossEntropy(elites=elites)
