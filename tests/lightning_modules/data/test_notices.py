"""Notices: what is said about a run that cannot learn, and that it is said once."""

import warnings
from dataclasses import replace

import pytest
import torch

from aggregate_po.advantages import KalmanInnovation, WhitenedReturns
from lightning_modules import SharedPrompts
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.data.notices import Notices
from lightning_modules.data.schemes import DynamicSampling, Replay
from lightning_modules.flow import FlowDataModule
from lightning_modules.rollouts import TransformersEngine
from tests.lightning_modules.training import fitted, small_data, text_reward

VERDICTS = {"completions/failed_ratio": 0.0}
SIGNAL = {"frac_reward_zero_std": 0.5, "reward": 0.5, **VERDICTS}
NONE = {"frac_reward_zero_std": 1.0, "reward": 0.0, **VERDICTS}
FINISHED, TRUNCATED = {"completions/clipped_ratio": 0.5}, {"completions/clipped_ratio": 1.0}


def said(*rollouts, truncated="zero_reward", start=None, has_advantage=False):
    """The beginnings of the notices about these rollouts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notices = Notices(12, truncated)
        if start is not None:
            updates, epochs, old_policy_samples = start
            plan = UpdatePlan(updates, epochs, 1, SharedPrompts(), None)
            notices.before_training(plan, old_policy_samples)
        for metrics in rollouts:
            notices.after_rollout(metrics, has_advantage)
    return [str(warning.message) for warning in caught]


def test_nothing_is_said_about_a_run_that_learns():
    assert said(SIGNAL | FINISHED, NONE | FINISHED, NONE | TRUNCATED, start=(2, 1, False)) == []
    assert said(NONE | FINISHED, SIGNAL | FINISHED, NONE | FINISHED, start=(1, 2, False)) == []


def test_rollouts_without_signal_are_told_once():
    (notice,) = said(*[NONE | FINISHED] * 5)
    assert notice.startswith("No group of the first 2 rollouts had signal")
    assert "the mean is 0)" in notice
    assert "aggregate-po validate" in notice
    assert said(NONE | FINISHED) == []


def test_rollouts_without_signal_are_not_told_where_they_have_advantages():
    """An estimator with another baseline than the mean of the group gives them to groups of equal rewards."""
    assert said(*[NONE | FINISHED] * 5, has_advantage=True) == []


@pytest.mark.parametrize("estimator", [WhitenedReturns(), KalmanInnovation()])
def test_a_run_that_learns_from_groups_of_equal_rewards_is_not_told_that_it_cannot(tmp_path, model_folder, estimator):
    def by_prompt(completion, example):
        return float(len(example["prompt"]) % 2 + 1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = small_data(reward=by_prompt, dataset=[{"prompt": "1"}, {"prompt": "12"}], advantages=estimator)
        run = fitted(tmp_path, model_folder, data=data, max_steps=3)
    assert run.metrics["frac_reward_zero_std"] == 1
    assert not [warning for warning in caught if str(warning.message).startswith("No group of the first")]


@pytest.mark.parametrize(
    ("rule", "effect"),
    [("score", "none of them ended by itself"), ("zero_reward", "all rewards are 0"), ("mask", "no token is trained")],
)
def test_truncation_of_everything_is_told_once_with_its_effect(rule, effect):
    (notice,) = said(*[SIGNAL | TRUNCATED] * 3, truncated=rule)
    assert notice.startswith(
        f"All completions of the first rollout were truncated at `max_completion_length`=12, so {effect}"
    )
    assert said(SIGNAL | FINISHED, SIGNAL | TRUNCATED) == []


def test_many_failed_verdicts_are_told_once():
    few = SIGNAL | FINISHED | {"completions/failed_ratio": 0.1, "rewards/a/failed/time": 4}
    many = (
        SIGNAL | FINISHED | {"completions/failed_ratio": 0.25, "rewards/a/failed/time": 10, "rewards/a/failed/exit": 0}
    )
    assert said(few) == []
    (notice,) = said(few, many, many)
    beginning = "Verdicts failed on 25% of the completions of a rollout; rewards/a/failed/time: 10. Those completions"
    assert notice.startswith(beginning)
    assert "a rollout. Those" in said(SIGNAL | FINISHED | {"completions/failed_ratio": 1.0})[0]


def test_one_update_of_the_policys_own_data_is_told_at_the_start():
    (notice,) = said(start=(1, 1, False))
    assert "Every mean of ratios then has the same gradient" in notice
    assert said(start=(1, 1, True)) == []


@pytest.mark.parametrize(("source", "is_old"), [("sampler", True), ("trainer", False)])
def test_replayed_groups_are_of_an_old_policy_if_they_keep_their_log_probs(source, is_old):
    """The trainer computes their log-probabilities anew, from the policy before the update."""
    assert small_data(schemes=[DynamicSampling(), Replay()], old_log_probs=source).samples_from_old_policy is is_old
    assert not small_data(schemes=[DynamicSampling()], old_log_probs=source).samples_from_old_policy


def test_replayed_trajectories_are_of_an_old_policy():
    data = FlowDataModule([{"prompt": "a"}], text_reward, schemes=[Replay()])
    assert data.samples_from_old_policy
    assert not FlowDataModule([{"prompt": "a"}], text_reward).samples_from_old_policy


class NeverFinished(TransformersEngine):
    """Gives the impression that no completion has ended by itself."""

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        return replace(generated, finished=torch.zeros_like(generated.finished))


def test_a_run_that_cannot_learn_is_told_so(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0, rollouts=NeverFinished())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(tmp_path, model_folder, data=data, max_steps=3)
    texts = [str(warning.message) for warning in caught]
    for beginning in ("`updates_per_rollout` and", "All completions of the first", "No group of the first 2 rollouts"):
        assert sum(text.startswith(beginning) for text in texts) == 1, texts
