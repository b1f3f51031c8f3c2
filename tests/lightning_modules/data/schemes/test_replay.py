"""Replay: which groups come back, how old they are, and whose log-probabilities they have."""

import io
from dataclasses import dataclass, fields, replace
from datetime import date

import pytest
import torch

from aggregate_po.recipes import grpo
from lightning_modules.data.groups import Groups
from lightning_modules.data.schemes import DynamicSampling, Replay
from lightning_modules.data.schemes.stored import restored, stored
from lightning_modules.prompts import Prompt
from lightning_modules.rollouts import Completions
from tests.lightning_modules.training import BatchRecorder, RecordingEngine, fitted, small_data

GROUP = 2


def group(number, signal, step):
    """One group of completions of `number + 1` tokens."""
    mask = torch.ones(GROUP, number + 1, dtype=torch.bool)
    rewards = torch.tensor([1.0, 0.0 if signal else 1.0], dtype=torch.double)
    completions = Completions(mask.long() * number, mask, -mask.float(), torch.ones(GROUP, dtype=torch.bool))
    prompt = Prompt({"prompt": str(number), "answer": [1, None]}, (number, 7), index=number, weight=1.5)
    texts = [f"{number}{row}" for row in range(GROUP)]
    return Groups([prompt], completions, texts, rewards.unsqueeze(-1), rewards, mask, [step])


@dataclass
class Rollout:
    """A stage with groups of some step, and what a scheme asks of a rollout."""

    signals: str  # "s" for a group with signal
    step: int
    missing: tuple[int, ...] = ()  # groups without signal, by rank; those of this rank alone if there are none
    rank: int = 0
    first: int = 0
    trained: int | None = None  # step of the policy that the rollout trains; that which sampled when None

    def __post_init__(self):
        self._memory = {}

    @property
    def trained_step(self):
        return self.step if self.trained is None else self.trained

    def __call__(self, count):
        rows = [group(self.first + number, signal == "s", self.step) for number, signal in enumerate(self.signals)]
        return replace(Groups.joined(rows), metrics={"engine": 1.0})

    def gathered(self, table):
        return torch.tensor(self.missing).unsqueeze(-1) if self.missing else table

    def gathered_values(self, value):
        return [value]

    def over_ranks(self, tally):
        return tally

    def example_of(self, index):
        return {"prompt": str(index), "answer": [1, None]}

    def memory_of(self, scheme):
        return self._memory


def numbers(groups):
    return [int(prompt.example["prompt"]) for prompt in groups.prompts]


def run(scheme, rollout):
    return scheme.groups(len(rollout.signals), rollout, rollout)


def test_groups_without_signal_are_replaced_by_the_newest_with():
    scheme = Replay(max_age=4)
    first = run(scheme, Rollout("s-s", step=0))
    assert numbers(first) == [0, 1, 2]  # nothing to replay yet
    assert (first.metrics["replay/groups"], first.metrics["replay/buffer"]) == (0, 2)
    second = run(scheme, Rollout("-s-", step=2, first=10))
    assert numbers(second) == [2, 11, 0]
    assert [bool(signal) for signal in second.have_signal] == [True] * 3
    assert second.completions.mask.sum(dim=-1).tolist() == [3, 3, 12, 12, 1, 1]
    assert second.policy_steps == [0, 2, 0]
    assert second.metrics == {
        "engine": 1.0,
        "replay/groups": 2,
        "replay/age": 2.0,
        "replay/buffer": 1,
        "replay/reward": pytest.approx((1 + 0.5 + 1) / 3),
        "replay/without_signal": pytest.approx(2 / 3),
    }
    # Each is replayed once: only 11 is left.
    third = run(scheme, Rollout("--", step=4, first=20))
    assert numbers(third) == [11, 21]
    assert third.policy_steps == [2, 4]


def test_old_groups_and_those_beyond_the_capacity_are_forgotten():
    scheme = Replay(capacity=3, max_age=5)
    run(scheme, Rollout("ss", step=0))
    run(scheme, Rollout("ss", step=3, first=10))
    assert numbers(run(scheme, Rollout("----", step=4, first=20))) == [11, 10, 1, 23]
    run(scheme, Rollout("ss", step=5, first=30))
    assert numbers(run(scheme, Rollout("--", step=11, first=40))) == [40, 41]


def test_ages_are_those_at_the_policy_that_is_trained():
    """With `data.overlap` the fresh groups are as old as a rollout themselves."""
    scheme = Replay(max_age=4)
    run(scheme, Rollout("s", step=0))
    kept = run(scheme, Rollout("-s", step=2, trained=4, first=10))
    assert (numbers(kept), kept.metrics["replay/age"]) == ([0, 11], 4)
    assert numbers(run(scheme, Rollout("-", step=6, trained=8, first=20))) == [20]


def test_no_group_is_twice_in_a_rollout():
    """A scheme around asks twice for the same rollout."""
    scheme = Replay()
    rollout = Rollout("s-", step=3)
    assert numbers(run(scheme, rollout)) == [0, 1]
    assert numbers(run(scheme, rollout)) == [0, 1]


def test_no_group_is_twice_in_a_rollout_whose_later_call_has_a_newer_policy():
    """With `data.overlap` only the first call was sampled ahead."""
    scheme, rollout = Replay(), Rollout("s-", step=0)
    run(scheme, rollout)
    rollout.step, rollout.first = 4, 10
    assert numbers(run(scheme, rollout)) == [10, 11]
    assert sorted(numbers(run(scheme, Rollout("--", step=4, first=20)))) == [0, 10]


def test_ranks_take_from_the_buffer_in_turn():
    """Three places on rank 0, one on rank 1, and three groups: two for the first, one for the second."""
    found = []
    for rank, signals in enumerate(("---", "-s")):
        scheme = Replay()
        run(scheme, Rollout("sss", step=0))
        groups = run(scheme, Rollout(signals, step=1, missing=(3, 1), rank=rank, first=10))
        found.append(numbers(groups))
        assert groups.policy_step == 0
        assert groups.metrics["replay/groups"] == 3
    assert found == [[2, 0, 12], [1, 11]]


def test_a_group_that_another_rank_replays_counts_in_the_mean_age():
    scheme = Replay()
    run(scheme, Rollout("s", step=0))
    groups = run(scheme, Rollout("ss", step=3, missing=(1, 0), rank=1, first=10))
    assert numbers(groups) == [10, 11]
    assert (groups.policy_step, groups.metrics["replay/age"]) == (3, 3)


def test_a_group_is_stored_as_plain_values():
    original = replace(group(3, True, 5), scored=torch.tensor([True, False]), causes=[[None], ["time"]])
    buffer = io.BytesIO()
    torch.save(stored(Groups.joined([group(9, True, 0), original]), 1), buffer)
    buffer.seek(0)
    again = restored(torch.load(buffer, weights_only=True), [].__getitem__)  # the data set is not read
    for field in fields(Groups):
        if field.name not in ("completions", "metrics"):
            ours, theirs = getattr(again, field.name), getattr(original, field.name)
            assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
    for name, value in vars(original.completions).items():
        assert torch.equal(getattr(again.completions, name), value)


def test_what_json_would_change_in_an_example_is_that_of_the_data_set():
    fields_of_data_set = {"embedding": torch.ones(2), "size": (1, 2), "nested": [{"day": date(2026, 1, 1)}, {3: "x"}]}
    example = {"prompt": "a question", "answer": [1.5, None, {"unit": "m"}], **fields_of_data_set}
    derived = {**example, "prompt": "a question with a draft"}  # as schemes make them
    original = replace(group(0, True, 5), prompts=[Prompt(derived, (1,), index=2)])
    again = restored(stored(original, 0), [{}, {}, example].__getitem__).prompts[0].example
    assert (again["prompt"], again["answer"]) == (derived["prompt"], derived["answer"])
    assert all(again[name] is value for name, value in fields_of_data_set.items())


def test_an_example_that_the_data_set_has_no_more_is_an_error():
    original = replace(group(0, True, 5), prompts=[Prompt({"prompt": "a", "size": (1, 2)}, (1,), index=2)])
    for dataset in ([], [{}, {}, {"prompt": "b"}]):
        with pytest.raises(ValueError, match=r"no example 2 with the fields \['size'\], .* resume with the data set"):
            restored(stored(original, 0), dataset.__getitem__)


def test_an_example_of_no_data_set_is_json():
    original = replace(group(0, True, 5), prompts=[Prompt({"prompt": "a", "size": (1, 2)}, (1,))])
    assert restored(stored(original, 0), [].__getitem__).prompts[0].example == {"prompt": "a", "size": [1, 2]}


def test_metrics_are_those_of_all_calls_of_a_rollout():
    scheme = Replay()
    run(scheme, Rollout("s", step=0))
    rollout = Rollout("---", step=2, first=10)
    first = run(scheme, rollout)
    assert (first.metrics["replay/groups"], first.metrics["replay/age"]) == (1, 2)
    rollout.signals, rollout.first = "ss", 20
    metrics = run(scheme, rollout).metrics
    assert {name.removeprefix("replay/"): value for name, value in metrics.items() if "replay" in name} == {
        "groups": 1,
        "age": 2,
        "buffer": 2,
        "reward": (3 * 1 + 2 * 0.5) / 5,
        "without_signal": 3 / 5,
    }


@pytest.mark.parametrize("arguments", [{"capacity": 0}, {"max_age": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"` is 0; pass 1 or more"):
        Replay(**arguments)


# In a training


def reward(completion, example):
    """Signal in the first rollout alone."""
    reward.calls += 1
    return float(reward.calls % 4 == 1 and reward.calls <= 16)


@pytest.mark.parametrize("source", ["sampler", "trainer"])
@pytest.mark.filterwarnings("error:The ratios of a rollout's first update should be 1")
def test_replayed_groups_have_the_log_probs_of_their_sampling_or_of_the_trainer(tmp_path, model_folder, source):
    reward.calls = 0
    engine, recorder = RecordingEngine(), BatchRecorder()
    data = small_data(
        dataset=[{"prompt": f"{number} + {number}"} for number in range(8)],
        reward=reward,
        rollouts=engine,
        schemes=[Replay()],
        old_log_probs=source,
        epochs_per_rollout=2,
    )
    fitted(tmp_path, model_folder, grpo(), data=data, callbacks=[recorder], max_steps=4, val_check_interval=None)
    first, _, second, _ = recorder.batches
    assert [metrics["rollout/staleness"] for metrics in recorder.metrics[::2]] == [0, 2]
    assert [metrics["replay/groups"] for metrics in recorder.metrics[::2]] == [0, 4]
    assert len(first.completion_ids) == len(second.completion_ids) == 16
    order = [row for prompt in (3, 2, 1, 0) for row in range(4 * prompt, 4 * prompt + 4)]
    assert torch.equal(second.completion_ids, first.completion_ids[order])
    kept = torch.equal(second.policy.old_log_probs, first.policy.old_log_probs[order])
    assert kept == (source == "sampler")


def test_what_is_still_missing_is_sampled_by_a_scheme_around(tmp_path, model_folder):
    reward.calls = 0
    recorder = BatchRecorder()
    data = small_data(
        reward=reward, schemes=[Replay(), DynamicSampling(max_rounds=2, at_bound="smaller")], rollouts=RecordingEngine()
    )
    fitted(tmp_path, model_folder, grpo(), data=data, callbacks=[recorder], max_steps=2)
    first, second = recorder.metrics
    assert (first["groups/rounds"], second["groups/rounds"], second["replay/groups"]) == (1, 1, 4)
