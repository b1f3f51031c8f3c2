"""Committal rates: the arm that is fed, the runs that fail, and the ensemble."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.committal import FAILED, best_of, failures, fed, rows, sampled
from experiments.classical.shared.curves import curve_of, slope
from experiments.classical.shared.softmax import log_complement, natural_step, policy_gradient_step, sample


def test_policy_gradient_commits_like_one_over_t():
    """The limit for two arms is 1 / (2 eta r), since the odds grow by 2 eta r (1 - pi) in each step."""
    found = fed(policy_gradient_step, 10_000).exp()
    odds = 0.0  # logarithm; one recursion of plain numbers, which is fast enough for the last value
    for step in range(1, 100_001):
        odds += 0.8 / (1 + math.exp(odds))
        if step in (values := {100: 1.2634625, 1_000: 1.2535239, 10_000: 1.2505679, 100_000: 1.2500784}):
            assert step / (1 + math.exp(odds)) == pytest.approx(values[step], abs=1.01e-7)
            if step <= len(found):
                assert step * found[step - 1].item() == pytest.approx(values[step], abs=1.01e-7)


def test_natural_policy_gradient_commits_exponentially():
    found = fed(natural_step, 100)
    assert found[9].exp().item() == pytest.approx(0.0078182, abs=5e-8)
    assert 1 - found[99].exp().item() == 1  # 1 - pi is lost in pi, and its logarithm is not
    assert found[99].item() == pytest.approx(found[98].item() - 0.4, abs=1e-9)  # eta r in each step


def test_the_number_of_arms_changes_the_constant():
    """(K - 1) / (K eta r) for K arms that start alike."""
    logits = torch.zeros(5, dtype=torch.float64)
    for _ in range(20_000):
        logits = policy_gradient_step(logits, torch.tensor(0), torch.tensor(0.8).double(), 0.5)
    assert 20_000 * log_complement(logits, 0).exp().item() == pytest.approx(4 / 5 / 0.4, rel=2e-3)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.floats(0.01, 2), st.integers(0, 1))
def test_steps_are_the_gradient_and_its_importance_sampled_natural_form(values, reward, arm):
    """The expected policy gradient step is the gradient of the expected reward, by autograd."""
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    rewards = torch.linspace(0.1, 1, len(values), dtype=torch.float64) * reward
    (gradient,) = torch.autograd.grad(logits.softmax(-1) @ rewards, logits)
    start, actions, probability = logits.detach(), torch.arange(len(values)), logits.detach().softmax(-1)
    every = start.expand(len(values), -1)
    steps = policy_gradient_step(every, actions, rewards, 1.0) - start
    torch.testing.assert_close(probability @ steps, gradient, atol=1e-12, rtol=1e-9)
    natural = natural_step(every, actions, rewards, 1.0) - start
    torch.testing.assert_close(probability @ natural, rewards, atol=1e-12, rtol=1e-9)
    complement = log_complement(start, arm).exp()
    torch.testing.assert_close(complement, 1 - probability[arm], atol=1e-12, rtol=1e-9)


def test_actions_are_sampled_with_their_probabilities():
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().expand(100_000, -1)
    counts = sample(logits, torch.Generator().manual_seed(0)).bincount(minlength=3) / 100_000
    torch.testing.assert_close(counts, torch.tensor([0.2, 0.5, 0.3]), atol=0.005, rtol=0)


def test_natural_policy_gradient_fails_and_the_ensemble_does_not():
    runs = sampled(natural_step, [50], 2_000)
    assert 0.35 < failures(runs) < 0.48
    assert failures(best_of(runs, 2)) == pytest.approx(failures(runs) ** 2, abs=0.04)
    assert failures(best_of(runs, 16)) == 0
    others = runs[-1][-runs[-1].expm1() >= FAILED].exp() * 0.2
    assert 0.7e-12 < others.median() < 1.5e-12  # 1e-12 on the page
    slow = sampled(policy_gradient_step, [50], 512)[-1].exp() * 0.2
    assert slow.median().item() == pytest.approx(0.02, abs=0.002)
    assert best_of(torch.tensor([[-1.0, -3.0, -2.0, -5.0]]), 2).tolist() == [[-3, -5]]


def test_the_regret_of_policy_gradient_falls_like_one_over_t():
    curve = curve_of(rows(3_000, 512), "gap", "policy gradient")
    late = [number for number, step in enumerate(curve["x"]) if step > 300]
    assert slope([curve["x"][i] for i in late], [curve["y"][i] for i in late]) == pytest.approx(-1, abs=0.15)
    assert math.isclose(curve["x"][-1], 3_000)
