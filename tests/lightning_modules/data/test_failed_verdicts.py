"""Completions on which a verdict failed: what is trained, measured, and selected."""

import math
from dataclasses import dataclass

import pytest
import torch

from aggregate_po import AdvantageEstimator
from aggregate_po.advantages import GroupCentered, GroupedRewards, GroupNormalized
from aggregate_po.recipes import dapo
from lightning_modules.callbacks.report import RunReport
from lightning_modules.data.groups import Groups
from lightning_modules.data.schemes import DraftRefinement, DynamicSampling, Replay
from lightning_modules.prompts import Prompt
from lightning_modules.rewards import BatchReward, Verdict
from lightning_modules.rollouts import Completions
from tests.lightning_modules.data.test_module import LENGTHS, ScriptedEngine, rollout_of
from tests.lightning_modules.training import (
    BatchRecorder,
    NotedAdvantages,
    RecordingEngine,
    fitted,
    small_data,
    text_reward,
)

REWARDS = [1.0, None, 0.0, 0.25, None, 1.0, None, None]
FAILED = [reward is None for reward in REWARDS]
KNOWN = [1.0, 0.0, 0.25]  # of the first group


@dataclass
class Scripted(BatchReward):
    """Gives these values in turn; None is a verdict that failed."""

    values: tuple
    cause: str = "time"

    def __call__(self, completions, examples):
        return [Verdict(None, self.cause, "1 s") if value is None else value for value in self.values]


def verdict_reward(completion, example):
    """Fails on some completions, decided by their text."""
    value = text_reward(completion, example)
    return Verdict(None, "exit", "exit status 3") if value == 0.25 else value


def scripted(tmp_path, model_folder, values=REWARDS, **options):
    engine = ScriptedEngine(LENGTHS, options.pop("finished", None))
    defaults = {"reward": Scripted(values), "rollouts": engine, "prompts_per_rollout": 2}
    return rollout_of(tmp_path, model_folder, dapo(), data=small_data(**{**defaults, **options}))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_completions_without_a_verdict_are_out_of_their_group(tmp_path, model_folder):
    with pytest.warns(UserWarning, match=r"`reward` Scripted failed for the completion .*: time 1 s. This warning is"):
        run = scripted(tmp_path, model_folder, advantages=GroupNormalized(ddof=0, delta=0.0))
    (batch,) = run.batches
    # The second group has a single verdict, so nothing to compare it with.
    expected = GroupNormalized(ddof=0, delta=0.0)(GroupedRewards(torch.tensor(KNOWN), 3))
    assert batch.policy.response_mask.any(dim=-1).tolist() == [True] * 3  # no other goes through the forward pass
    assert batch.policy.response_mask.sum(dim=-1).tolist() == [LENGTHS[0], LENGTHS[2], LENGTHS[3]]
    torch.testing.assert_close(batch.policy.advantages, expected)
    trained = [length for length, failed in zip(LENGTHS, FAILED, strict=True) if not failed]
    assert (batch.policy.totals.completions, batch.policy.totals.tokens) == (len(trained), sum(trained))


def test_metrics_are_those_of_the_verdicts(tmp_path, model_folder):
    run = scripted(tmp_path, model_folder)
    known = torch.tensor([reward for reward in REWARDS if reward is not None])
    metrics = {name: float(value) for name, value in run.metrics.items()}
    assert metrics["reward"] == metrics["rewards/Scripted/mean"] == pytest.approx(float(known.mean()))
    assert metrics["reward_std"] == pytest.approx(float(known.std(correction=0)))
    assert metrics["reward_group_std"] == pytest.approx(float(torch.tensor(KNOWN).std()))
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["completions/failed_ratio"] == 0.5
    assert metrics["rewards/Scripted/failed/time"] == 4
    assert metrics["rewards/Scripted/failed/exit"] == 0
    assert metrics["completions/mean_length"] == pytest.approx(sum(LENGTHS) / 8)
    assert all(map(math.isfinite, metrics.values()))
    totals = run.batches[0].policy.totals
    assert (totals.reward_mean, totals.reward_std) == pytest.approx((metrics["reward"], metrics["reward_std"]))


def test_a_failed_verdict_may_be_worth_nothing(tmp_path, model_folder):
    run = scripted(tmp_path, model_folder, failed_verdicts="zero", advantages=GroupCentered())
    (batch,) = run.batches
    zeros = torch.tensor([reward or 0.0 for reward in REWARDS])
    torch.testing.assert_close(batch.policy.advantages, GroupCentered()(GroupedRewards(zeros, 4)))
    assert run.metrics["rewards/Scripted/failed/time"] == 4
    assert run.metrics["reward"] == pytest.approx(float(zeros.mean()))


def test_a_failed_verdict_may_stop_the_run(tmp_path, model_folder):
    message = r"^the verdicts on 4 of 8 completions failed \(time: 4\), and `failed_verdicts` is 'error'"
    with pytest.raises(RuntimeError, match=message):
        scripted(tmp_path, model_folder, failed_verdicts="error")


def test_a_rollout_without_any_verdict_stops_the_run(tmp_path, model_folder):
    message = r"^the verdicts on all 8 completions of the rollout failed \(rewards/Scripted/failed/time: 8\)"
    with pytest.raises(RuntimeError, match=message):
        scripted(tmp_path, model_folder, [None] * 8)


@pytest.mark.parametrize(("rule", "mean"), [("zero_reward", 2.25 / 6), ("score", 2.25 / 4), ("mask", 2.25 / 4)])
def test_truncated_completions_of_reward_0_need_no_verdict(tmp_path, model_folder, rule, mean):
    finished = [True, False, True, True, False, True, True, True]
    run = scripted(tmp_path, model_folder, truncated=rule, finished=finished)
    assert run.metrics["reward"] == pytest.approx(mean)
    assert run.metrics["completions/failed_ratio"] == 0.5


def test_one_failed_reward_of_several_is_enough(tmp_path, model_folder):
    run = scripted(tmp_path, model_folder, reward=[Scripted([1.0] * 8), Scripted(REWARDS, "memory")])
    assert run.metrics["completions/failed_ratio"] == 0.5
    assert run.metrics["rewards/Scripted_1/mean"] == 1
    assert run.metrics["rewards/Scripted_2/failed/memory"] == 4


@pytest.mark.parametrize("rule", ["mask", "zero", "error"])
def test_a_reward_of_weight_0_fails_without_an_effect_on_training(tmp_path, model_folder, rule):
    both = [Scripted([1.0, 0.0] * 4), Scripted(REWARDS, "memory")]
    run = scripted(tmp_path, model_folder, reward=both, reward_weights=[1.0, 0.0], failed_verdicts=rule)
    (batch,) = run.batches
    assert batch.policy.response_mask.sum(dim=-1).tolist() == LENGTHS
    torch.testing.assert_close(run.metrics["reward"], torch.tensor(0.5))
    known = [reward for reward in REWARDS if reward is not None]
    assert float(run.metrics["rewards/Scripted_2/mean"]) == pytest.approx(sum(known) / len(known))
    assert run.metrics["rewards/Scripted_2/failed/memory"] == 4
    assert run.metrics["completions/failed_ratio"] == 0.5


def test_a_reward_of_weight_0_that_always_fails_has_no_mean(tmp_path, model_folder):
    both = [Scripted([1.0, 0.0] * 4), Scripted([None] * 8)]
    run = scripted(tmp_path, model_folder, reward=both, reward_weights=[1.0, 0.0])
    assert "rewards/Scripted_2/mean" not in run.metrics
    assert run.metrics["rewards/Scripted_2/failed/time"] == 8


class Constant(AdvantageEstimator):
    """An estimator that does not know of failed verdicts."""

    def __call__(self, rollout):
        return torch.ones_like(rollout.rewards)


def test_an_estimator_that_does_not_know_of_them_gives_them_nothing(tmp_path, model_folder):
    noted = NotedAdvantages(Constant())
    run = scripted(tmp_path, model_folder, advantages=noted)
    (step,) = noted.steps
    assert step.scored.tolist() == [True, False, True, True, False, False, False, False]
    assert torch.isfinite(step.rewards).all()
    assert run.batches[0].policy.advantages.tolist() == [1.0, 1.0, 1.0]


# Groups


def group(*rewards):
    known = torch.tensor([reward is not None for reward in rewards])
    values = torch.tensor([reward or 0.0 for reward in rewards], dtype=torch.float64)
    mask = torch.ones(len(rewards), 2, dtype=torch.bool)
    return Groups(
        prompts=[Prompt({"prompt": "?"}, (1,), index=0)],
        completions=Completions(mask.long(), mask, -mask.float(), mask[:, 0]),
        texts=["a"] * len(rewards),
        components=values.unsqueeze(-1),
        rewards=values,
        response_mask=mask & known.unsqueeze(-1),
        policy_steps=[0],
        scored=known,
        causes=[["time" if reward is None else None] for reward in rewards],
    )


@pytest.mark.parametrize(
    ("rewards", "signal"),
    [([1.0, 1.0, None], False), ([1.0, None, 0.5], True), ([1.0, None, None], False), ([None] * 3, False)],
)
def test_signal_is_that_of_the_verdicts(rewards, signal):
    assert group(*rewards).have_signal.tolist() == [signal]


def test_parts_of_a_rollout_keep_their_verdicts():
    joined = Groups.joined([group(1.0, None), group(0.0, 1.0)])
    assert joined.scored.tolist() == [True, False, True, True]
    assert joined.causes == [[None], ["time"], [None], [None]]
    chosen = joined.select(torch.tensor([1, 0]))
    assert chosen.scored.tolist() == [True, True, True, False]
    assert chosen.causes == [[None], [None], [None], ["time"]]


def test_dynamic_sampling_counts_verdicts_only(tmp_path, model_folder):
    data = small_data(reward=verdict_reward, schemes=[DynamicSampling()], group_size=3)
    run = fitted(tmp_path, model_folder, data=data, max_steps=2)
    assert run.metrics["frac_reward_zero_std"] == 0
    assert 0 < run.metrics["groups/reward"] < 1
    assert all(math.isfinite(value) for value in run.metrics.values())


class ByCall(BatchReward):
    """Gives the values of another list at each call; None is a verdict that failed."""

    def __init__(self, *calls):
        self.calls = list(calls)

    def __call__(self, completions, examples):
        return [Verdict(None, "time", "1 s") if value is None else value for value in self.calls.pop(0)]


SIGNAL = [1.0, 0.0, 0.0, 0.0]


def by_call(tmp_path, model_folder, *calls, schemes, max_steps=1):
    """Metrics of each optimizer step of a run with two groups of four."""
    recorder, shape = BatchRecorder(), {"prompts_per_rollout": 2, "rollouts": RecordingEngine()}
    data = small_data(reward=ByCall(*calls), schemes=schemes, **shape)
    fitted(tmp_path, model_folder, data=data, max_steps=max_steps, callbacks=[recorder])
    return recorder.metrics


def test_failed_verdicts_of_dropped_groups_are_counted(tmp_path, model_folder):
    with pytest.warns(UserWarning, match=r"Verdicts failed on 33% of the completions of a rollout; .*/failed/time: 4"):
        (metrics,) = by_call(tmp_path, model_folder, [None] * 4 + SIGNAL, SIGNAL, schemes=[DynamicSampling()])
    assert metrics["groups/without_signal"] == 1
    assert metrics["completions/failed_ratio"] == 4 / 12
    assert metrics["rewards/ByCall/failed/time"] == 4


def test_failed_verdicts_of_drafts_are_counted(tmp_path, model_folder):
    drafts = [None] * 5 + [1.0, 0.0, 0.0]
    (metrics,) = by_call(tmp_path, model_folder, drafts, SIGNAL * 2, schemes=[DraftRefinement()])
    assert metrics["completions/failed_ratio"] == 5 / 16


def test_failed_verdicts_of_replayed_groups_are_not_counted_again(tmp_path, model_folder):
    calls = [None, 1.0, 0.0, 0.0, *SIGNAL], [1.0] * 8
    metrics = by_call(tmp_path, model_folder, *calls, schemes=[Replay()], max_steps=2)
    assert [one["replay/groups"] for one in metrics] == [0, 2]
    assert [one["completions/failed_ratio"] for one in metrics] == [1 / 8, 0]
    assert [one["rewards/ByCall/failed/time"] for one in metrics] == [1, 0]


# Held-out prompts


def test_in_an_evaluation_a_failed_verdict_is_not_right(tmp_path, model_folder):
    held_out = [{"prompt": str(number), "answer": "1"} for number in range(8)]
    seen = []

    def grader(completion, example):
        value = verdict_reward(completion, example) if example in held_out else text_reward(completion, example)
        seen.append(value if example in held_out else None)
        return value

    data = small_data(reward=grader, validation=held_out, evaluations=["greedy"])
    run = fitted(tmp_path, model_folder, data=data, callbacks=[RunReport(0)])
    after = seen[-8:]
    values = [0.0 if isinstance(value, Verdict) else value for value in after]
    assert run.metrics["val/reward_greedy"] == pytest.approx(sum(values) / 8)
    failed = sum(isinstance(value, Verdict) for value in after)
    assert float(run.metrics.get("val/failed_verdicts_greedy", 0)) == pytest.approx(failed / 8)
    assert ("0 (the verdict failed: exit)" in (tmp_path / "samples.md").read_text()) == any(
        isinstance(value, Verdict) for value in [*seen[:5], *after[:5]]
    )
    assert failed
