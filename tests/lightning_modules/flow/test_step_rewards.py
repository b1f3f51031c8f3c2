"""Rewards of denoising steps on which a verdict failed, by the rule for failed verdicts."""

import pytest
import torch

from aggregate_po.advantages import Clamped, StepValues
from lightning_modules.rewards import Verdict
from tests.lightning_modules.flow.points import closeness, fitted_points, points_data
from tests.lightning_modules.training import NotedAdvantages

SAMPLES, STEPS = 16, 5
FAILED = ((3, 1), (3, 2), (9, 0))  # trajectory and step


class Failing:
    """A positive reward whose verdict fails on some steps; it is called for all samples first, and then for steps."""

    def __init__(self, failed=FAILED):
        self.places = {row * (STEPS - 1) + step for row, step in failed}
        self.calls = 0

    def __call__(self, sample, example):
        step = self.calls - SAMPLES
        self.calls += 1
        return Verdict(None, "value", "no number") if step in self.places else 3 + closeness(sample, example)


def of_one_rollout(folder, rule, reward, **data):
    """What the estimator saw of the only rollout, and the metrics."""
    noted = NotedAdvantages(Clamped(StepValues()))
    data = points_data(reward=reward, advantages=noted, failed_verdicts=rule, **data)
    run = fitted_points(folder, data=data, max_steps=1)
    return noted.steps[0], run.metrics


@pytest.fixture
def without_failures(tmp_path):
    return of_one_rollout(tmp_path / "without", "mask", Failing(()))[0]


@pytest.mark.filterwarnings("ignore:`reward` Failing failed")
def test_a_failed_verdict_on_a_step_stops_the_run_where_it_is_an_error(tmp_path):
    message = r"^the verdicts on 3 of 64 steps failed \(value: 3\), and `failed_verdicts` is 'error'"
    with pytest.raises(RuntimeError, match=message):
        of_one_rollout(tmp_path, "error", Failing())


@pytest.mark.filterwarnings("ignore:`reward` Failing failed")
def test_a_step_whose_verdict_failed_may_be_worth_nothing(tmp_path, without_failures):
    seen, metrics = of_one_rollout(tmp_path / "zero", "zero", Failing())
    expected = without_failures.step_rewards.clone()
    for row, step in FAILED:
        expected[row, step] = 0
    assert torch.equal(seen.step_rewards, expected)
    assert seen.scored is None
    assert float(metrics["step_rewards/failed_ratio"]) == pytest.approx(3 / (SAMPLES * STEPS))


@pytest.mark.filterwarnings("ignore:`reward` Failing failed")
def test_a_trajectory_with_a_step_whose_verdict_failed_is_out_of_its_group(tmp_path, without_failures):
    seen, metrics = of_one_rollout(tmp_path / "mask", "mask", Failing())
    kept = torch.tensor([row not in (3, 9) for row in range(SAMPLES)])
    assert seen.scored.tolist() == kept.tolist()
    assert torch.equal(seen.step_rewards[kept], without_failures.step_rewards[kept])
    assert float(metrics["reward"]) == pytest.approx(float(without_failures.rewards[kept].mean()))
    assert float(metrics["num_tokens"]) == SAMPLES * STEPS
    assert float(metrics["completions/trained_ratio"]) <= 14 / 16


@pytest.mark.filterwarnings("ignore:`reward` Failing failed")
@pytest.mark.parametrize("rule", ["mask", "zero", "error"])
def test_a_reward_of_weight_0_fails_on_steps_without_an_effect(tmp_path, rule, without_failures):
    both = [lambda sample, example: 3 + closeness(sample, example), Failing()]
    seen, metrics = of_one_rollout(tmp_path / rule, rule, both, reward_weights=[1.0, 0.0])
    assert torch.equal(seen.step_rewards, without_failures.step_rewards)
    assert seen.scored is None
    assert float(metrics["step_rewards/failed_ratio"]) == pytest.approx(3 / (SAMPLES * STEPS))
