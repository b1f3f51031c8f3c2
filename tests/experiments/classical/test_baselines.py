"""The value baseline: exact values of the enumeration, progress that is never negative, and rates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.baselines import bandit_regret, enumerated, process_regret, repeated
from experiments.classical.shared.curves import slope
from experiments.classical.shared.softmax import natural_step

EXPECTED = {
    False: {1: (0.52054205, 0), 4: (0.55548059, 0), 8: (0.57397871, 0.04523299), 12: (0.58104722, 0.36338314)},
    True: {1: (0.52497919, 0), 4: (0.59865377, 0), 8: (0.68936977, 0), 12: (0.76588113, 0)},
}


@pytest.mark.parametrize("used", [False, True])
def test_the_enumeration_has_the_exact_values(used):
    found = enumerated(12, used)
    for depth, expected in EXPECTED[used].items():
        assert found[depth - 1] == pytest.approx(expected, abs=6e-9)


def progress(logits, rewards, step_size, noise=(0.0,)):
    """Expected change of the expected reward in one step with the value baseline, by enumeration."""
    policy = logits.softmax(dim=-1)
    value, total = policy @ rewards, 0.0
    for arm in range(len(rewards)):
        for error in noise:
            after = natural_step(logits, torch.tensor(arm), rewards[arm] + error - value, step_size)
            total += policy[arm] / len(noise) * (after.softmax(dim=-1) @ rewards - value)
    return float(total)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-1, 1)), min_size=2, max_size=5), st.floats(1e-3, 10))
def test_expected_progress_is_never_negative_and_has_a_closed_form(arms, step_size):
    logits, rewards = torch.tensor(arms, dtype=torch.float64).unbind(dim=-1)
    policy = logits.softmax(dim=-1)
    gap = rewards - policy @ rewards
    # In the logarithm, since exp(eta y / pi) may overflow: pi e^x / (1 + pi (e^x - 1)) - pi is the growth of an arm.
    growth = (policy.logit() + step_size * gap / policy).sigmoid() - policy
    closed = float((policy * growth * gap / (1 - policy)).sum())
    assert progress(logits, rewards, step_size) == pytest.approx(closed, abs=1e-9)
    assert progress(logits, rewards, step_size) >= -1e-12


def test_the_closed_form_is_that_of_the_sheet():
    logits, rewards = torch.tensor([0.3, -0.2, 0.5]).double(), torch.tensor([1.0, 0.2, 0.6]).double()
    policy = logits.softmax(dim=-1)
    gap = rewards - policy @ rewards
    gain = policy * (0.3 * gap / policy).expm1()
    assert progress(logits, rewards, 0.3) == pytest.approx(float((policy * gain * gap / (1 + gain)).sum()), abs=1e-12)


def test_noise_above_the_gap_makes_progress_negative_near_the_optimum():
    logits, rewards = torch.tensor([6.0, 0.0]).double(), torch.tensor([1.0, 0.9]).double()
    assert progress(logits, rewards, 0.1) > 0
    assert progress(logits, rewards, 0.1, noise=(-0.5, 0.5)) < 0


def test_without_a_baseline_the_logit_of_a_repeated_arm_grows_linearly_and_with_it_logarithmically():
    linear, logarithmic = repeated(20_000, False), repeated(20_000, True)
    assert float(linear[-1] / 20_000) == pytest.approx(0.4, rel=1e-3)  # eta r
    assert float(logarithmic[-1] - logarithmic[1_999]) == pytest.approx(math.log(10), abs=0.02)


def test_regret_falls_like_one_over_t_with_the_baseline_and_stays_without():
    times = [1_000, 3_000, 10_000, 30_000]
    regret = bandit_regret(times, 20, True, torch.zeros(20).double()).median(dim=-1).values.tolist()
    assert slope(times, regret) == pytest.approx(-1.2, abs=0.3)
    without = bandit_regret([300, 1_000], 20, False, torch.zeros(20).double())
    assert (without[1] > 1e-3).double().mean() > 0.5
    torch.testing.assert_close(without[0].median(), without[1].median())


def test_the_decision_process_needs_the_baseline_too():
    with_it, without = (process_regret([2_000], 10, used)[0] for used in (True, False))
    assert with_it.max() < 0.05
    assert without.median() > 0.5
