"""Sampling schemes: what is kept, sampled again, counted, weighted and remembered."""

import itertools
import re
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from aggregate_po.recipes import grpo
from lightning_modules import PolicyModule
from lightning_modules.callbacks.checkpoints import RunCheckpoint
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes import DynamicSampling, SamplingScheme
from lightning_modules.data.schemes.stack import SchemeStack
from lightning_modules.prompts import Prompt
from lightning_modules.rollouts import Completions
from lightning_modules.tally import Tally
from tests.lightning_modules.training import (
    BatchRecorder,
    NotedAdvantages,
    RecordingEngine,
    fitted,
    small_data,
    text_reward,
)

GROUP = 2


@dataclass
class ScriptedStage:
    """Groups in a row, with signal or without; knows what a scheme asks of a rollout."""

    signals: tuple[bool, ...]
    updates: int = 1
    taken: int = 0
    counts: list[int] = field(default_factory=list)
    memory: dict = field(default_factory=dict)

    def __call__(self, count):
        first, self.taken = self.taken, self.taken + count
        self.counts.append(count)
        return Groups.joined([group(number, self.signals[number]) for number in range(first, self.taken)])

    def over_ranks(self, tally):
        return tally

    def memory_of(self, scheme):
        return self.memory


def group(number, signal):
    """One group; its completions have `number + 1` tokens, so that a joined row is padded."""
    mask = torch.ones(GROUP, number + 1, dtype=torch.bool)
    rewards = torch.tensor([number + 1.0, 0.0 if signal else number + 1.0])
    completions = Completions(mask.long() * number, mask, -mask.float(), torch.ones(GROUP, dtype=torch.bool))
    texts = [f"{number}{row}" for row in range(GROUP)]
    return Groups(
        [Prompt({"prompt": number}, (number,))], completions, texts, rewards.unsqueeze(-1), rewards, mask, [0]
    )


def test_rewards_that_are_equal_on_paper_are_no_signal():
    equal = group(0, signal=False)
    almost = replace(equal, rewards=torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64))
    apart = replace(equal, rewards=torch.tensor([1.0, 1 + 1e-9], dtype=torch.float64))
    assert [bool(groups.have_signal) for groups in (equal, almost, apart)] == [False, False, True]


def numbers(groups):
    return [prompt.example["prompt"] for prompt in groups.prompts]


def pattern(signals):
    return "".join("s" if signal else "-" for signal in signals)


@pytest.mark.parametrize("oversampling", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("signals", itertools.product([False, True], repeat=6), ids=pattern)
def test_the_first_groups_with_signal_are_kept_and_the_others_counted(signals, oversampling):
    """Every pattern of six groups, of which two with signal are wanted; beyond the pattern all have signal."""
    stage = ScriptedStage((*signals, *[True] * 60))
    groups = DynamicSampling(max_rounds=50, oversampling=oversampling).groups(2, stage, stage)
    expected = [number for number, signal in enumerate(stage.signals) if signal][:2]
    assert numbers(groups) == expected
    assert groups.texts == [f"{number}{row}" for number in expected for row in range(GROUP)]
    assert [int(length) for length in groups.completions.mask.sum(dim=-1)] == [n + 1 for n in expected for _ in "ab"]
    sampled = stage.signals[: stage.taken]
    assert groups.metrics == {
        "groups/sampled": len(sampled),
        "groups/kept": 2,
        "groups/without_signal": sampled.count(False),
        "groups/surplus": sampled.count(True) - 2,
        "groups/reward": pytest.approx(
            sum((number + 1) * (1 if signal else 2) for number, signal in enumerate(sampled)) / len(sampled) / GROUP
        ),
        "groups/rounds": len(stage.counts),
    }
    # No round is made once there is enough, and each asks for what is missing.
    missing, position = 2, 0
    for count in stage.counts:
        assert missing > 0
        assert count == -(-missing * oversampling // 1)
        missing -= sum(stage.signals[position : position + count])
        position += count
    assert missing <= 0


def test_metrics_are_those_of_all_calls_of_a_rollout():
    stage, scheme = ScriptedStage((False, True, True)), DynamicSampling()
    assert numbers(scheme.groups(1, stage, stage)) == [1]
    metrics = scheme.groups(1, stage, stage).metrics
    found = {name.removeprefix("groups/"): value for name, value in metrics.items()}
    assert found == {
        "sampled": 3,
        "kept": 2,
        "without_signal": 1,
        "surplus": 0,
        "rounds": 3,
        "reward": (1 + 1 + 2 + 0 + 3 + 0) / 6,
    }


@pytest.mark.parametrize("signals", itertools.product([False, True], repeat=4), ids=pattern)
@pytest.mark.parametrize("updates", [1, 2])
def test_at_the_bound_a_rollout_is_smaller_or_an_error(signals, updates):
    """Four groups are wanted and one round is allowed."""
    stage, count = ScriptedStage(signals, updates), sum(signals)
    smaller = DynamicSampling(max_rounds=1, at_bound="smaller").groups(4, stage, stage)
    size = max(count // updates * updates, updates)
    with_signal = [number for number, signal in enumerate(signals) if signal]
    without = [number for number, signal in enumerate(signals) if not signal]
    assert numbers(smaller) == [*with_signal, *without][:size]
    assert smaller.metrics["groups/kept"] == size
    assert smaller.metrics["groups/surplus"] == max(count - size, 0)
    stage = ScriptedStage(signals, updates)
    if count == 4:
        assert numbers(DynamicSampling(max_rounds=1).groups(4, stage, stage)) == with_signal
    else:
        with pytest.raises(
            RuntimeError, match=rf"`max_rounds`=1 rounds of sampling a rank has {count} of the 4 groups"
        ):
            DynamicSampling(max_rounds=1).groups(4, stage, stage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_rounds": 0}, "`max_rounds` is 0; pass 1 or more"),
        ({"oversampling": 0.5}, r"`oversampling` is 0\.5; pass 1, or a larger number"),
        ({"oversampling": float("nan")}, "`oversampling` is nan"),
        ({"at_bound": "shrink"}, "`at_bound` is 'shrink'; pass one of error, smaller"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**arguments)


def test_what_is_no_scheme_is_refused():
    with pytest.raises(TypeError, match=r"`schemes` has 'dynamic'; pass instances of subclasses of lightning_modules"):
        small_data(schemes=["dynamic"])


# In a training


def is_live(example):
    """Three prompts of eight have completions that differ in their reward."""
    return int(example["prompt"].split()[0]) % 8 in (1, 2, 5)


def reward_of_live_prompts(completion, example):
    return text_reward(completion, example) if is_live(example) else 0.5


DATASET = [{"prompt": f"{number} + {number}"} for number in range(64)]


def dynamic_data(engine=None, **options):
    defaults = {
        "dataset": DATASET,
        "reward": reward_of_live_prompts,
        "rollouts": engine or RecordingEngine(),
        "updates_per_rollout": 2,
        "schemes": [DynamicSampling()],
    }
    return small_data(**{**defaults, **options})


def prompts_of(batches, tokenizer):
    return {
        tokenizer.decode(batch.prompt_ids[prompt][batch.prompt_mask[prompt]])
        for batch in batches
        for prompt in batch.prompt_of.tolist()
    }


def test_only_groups_with_signal_are_trained_on(tmp_path, model_folder):
    engine, recorder = RecordingEngine(), BatchRecorder()
    run = fitted(tmp_path, model_folder, grpo(), data=dynamic_data(engine), max_steps=4, callbacks=[recorder])
    prompts = prompts_of(recorder.batches, run.module.policy.tokenizer)
    assert all(is_live({"prompt": prompt}) for prompt in prompts)
    assert len(prompts) == 8
    # A completion whose reward is the mean of its group has no gradient either.
    trained = [round(metrics["completions/trained_ratio"] * 16) for metrics in recorder.metrics[::2]]
    assert sum(len(batch.completion_ids) for batch in recorder.batches) == sum(trained) > 24
    assert all(batch.policy.totals.completions == 8 for batch in recorder.batches)
    metrics = recorder.metrics[0]
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["groups/kept"] == 4
    assert metrics["groups/sampled"] == metrics["groups/without_signal"] + metrics["groups/surplus"] + 4
    # Every round has prompts and a seed of its own.
    sampled = [tuple(prompt) for prompts in engine.prompts for prompt in prompts]
    assert len(set(sampled)) == len(sampled) == sum(row["groups/sampled"] for row in recorder.metrics[::2])
    assert len({sampling.seed for sampling in engine.sampling}) == len(engine.sampling)
    assert len(engine.sampling) == sum(row["groups/rounds"] for row in recorder.metrics[::2])


def test_a_smaller_rollout_has_smaller_totals(tmp_path, model_folder):
    recorder = BatchRecorder()
    data = dynamic_data(schemes=[DynamicSampling(max_rounds=1, at_bound="smaller")], prompts_per_rollout=12)
    run = fitted(
        tmp_path, model_folder, grpo(), data=data, max_steps=2, callbacks=[recorder], accumulate_grad_batches=2
    )
    kept = int(recorder.metrics[0]["groups/kept"])
    assert 2 <= kept < 12
    assert kept % 2 == 0
    assert {batch.policy.totals.completions for batch in recorder.batches} == {kept * 4 / 2}
    # A completion with the mean reward of its group has no gradient, and is left out.
    trained = run.metrics["completions/trained_ratio"].item()
    assert sum(len(batch.completion_ids) for batch in recorder.batches) == pytest.approx(trained * kept * 4)
    assert trained > 0.8
    assert run.trainer.global_step == 2


def test_too_few_groups_end_the_run_with_the_remedy(tmp_path, model_folder):
    data = dynamic_data(reward=lambda completion, example: 1.0, schemes=[DynamicSampling(max_rounds=3)])
    with pytest.raises(RuntimeError, match=r"`max_rounds`=3 rounds .* 0 of the 4 groups .* pass at_bound='smaller'"):
        fitted(tmp_path, model_folder, data=data)


class Stopped(Exception):
    """The process would be gone here."""


class StopInRound(RecordingEngine):
    """Stops at a call; notes its seeds."""

    def __init__(self, call=None):
        super().__init__()
        self.call = call

    def generate(self, prompts, sampling):
        if len(self.sampling) == self.call:
            raise Stopped
        return super().generate(prompts, sampling)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_stops_between_two_rounds_resumes_exactly(tmp_path, model_folder, accumulate):
    def run(folder, engine, ckpt_path=None):
        checkpoint = RunCheckpoint(str(folder / "checkpoints"), every_n_train_steps=1)
        # The engine that stops is another one than that of the resume.
        module = PolicyModule(model_folder, grpo(), learning_rate=1e-2, warmup_steps=0, resume_with_changes=True)
        options = {"callbacks": [checkpoint], "enable_checkpointing": True, "accumulate_grad_batches": accumulate}
        data = dynamic_data(engine)
        return fitted(folder, model_folder, data=data, module=module, max_steps=8, ckpt_path=ckpt_path, **options)

    complete = RecordingEngine()
    undisturbed = run(tmp_path / "complete", complete)
    assert len({sampling.seed for sampling in complete.sampling}) == len(complete.sampling) > 6
    for call in range(1, len(complete.sampling), 4):
        engine = StopInRound(call)
        folder = tmp_path / f"stopped_{call}"
        with pytest.raises(Stopped):
            run(folder, engine)
        last = folder / "checkpoints" / "last.ckpt"
        resumed = run(folder, again := RecordingEngine(), last if last.exists() else None)
        made = len(engine.prompts) if last.exists() else 0
        # The rollout in which it stopped starts again, with the same prompts and seeds.
        assert again.prompts == complete.prompts[-len(again.prompts) :]
        assert len(again.prompts) >= len(complete.prompts) - made
        for name, value in undisturbed.module.model.named_parameters():
            assert torch.equal(value, dict(resumed.module.model.named_parameters())[name])


# Schemes of one's own


@dataclass(frozen=True)
class Halved(SamplingScheme):
    """Trains on every other group, with twice the weight."""

    def groups(self, count, below, rollout):
        groups = below(2 * count)
        return groups.select(torch.arange(0, 2 * count, 2))

    def first_count(self, count):
        return 2 * count

    def weighted(self, advantages, groups, seed):
        return 2 * advantages


@dataclass(frozen=True)
class TwoStages(SamplingScheme):
    """Drafts for each prompt, and completions of the prompt with its best draft."""

    drafts: int = 2

    def groups(self, count, below, rollout):
        prompts = below(count).prompts
        drafts = rollout.complete(prompts, self.drafts)
        best = drafts.rewards.reshape(count, self.drafts).argmax(dim=-1)
        second = [
            {**prompt.example, "prompt": f"{prompt.example['prompt']} {drafts.texts[row * self.drafts + int(chosen)]}"}
            for row, (prompt, chosen) in enumerate(zip(prompts, best, strict=True))
        ]
        return rollout.complete([rollout.prompt_of(example) for example in second])


class Counting(SamplingScheme):
    """Remembers how many groups went by."""

    def __init__(self):
        self.seen = 0

    def groups(self, count, below, rollout):
        groups = below(count)
        self.seen += len(groups)
        return groups

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_advantages_are_estimated_on_what_a_scheme_keeps_and_then_weighted(tmp_path, model_folder):
    engine, recorder, noted = RecordingEngine(), BatchRecorder(), NotedAdvantages()
    data = small_data(rollouts=engine, schemes=[Halved()], advantages=noted)
    fitted(tmp_path, model_folder, data=data, callbacks=[recorder])
    assert len(engine.prompts[0]) == 8
    assert len(noted.steps[0].rewards) == 16
    expected = 2 * noted.estimator(noted.steps[0])
    trained = recorder.batches[0].policy.advantages
    assert sorted(trained[trained != 0].tolist()) == pytest.approx(sorted(expected[expected != 0].tolist()))


def test_a_scheme_may_complete_prompts_of_its_own(tmp_path, model_folder):
    engine = RecordingEngine()
    run = fitted(tmp_path, model_folder, data=small_data(rollouts=engine, schemes=[TwoStages()]))
    tokenizer = run.module.policy.tokenizer
    first, drafts, second = ([tokenizer.decode(prompt) for prompt in prompts] for prompts in engine.prompts)
    assert first == drafts
    assert [sampling.samples_per_prompt for sampling in engine.sampling] == [4, 2, 4]
    assert all(
        longer.startswith(prompt) and len(longer) > len(prompt) for longer, prompt in zip(second, first, strict=True)
    )


def test_schemes_wrap_each_other(tmp_path, model_folder):
    """The first is innermost: dynamic sampling fills up what the halved stage gives it."""
    engine, recorder = RecordingEngine(), BatchRecorder()
    data = dynamic_data(engine, schemes=[Halved(), DynamicSampling()])
    run = fitted(tmp_path, model_folder, data=data, callbacks=[recorder], max_steps=2)
    assert all(is_live({"prompt": prompt}) for prompt in prompts_of(recorder.batches, run.module.policy.tokenizer))
    metrics = recorder.metrics[0]
    assert sum(map(len, engine.prompts)) == 2 * metrics["groups/sampled"]
    assert SchemeStack(data.schemes, 0).first_sizes(4, 2) == (8, 2)


def test_a_new_run_begins_with_what_a_scheme_knew_at_first(tmp_path, model_folder):
    data = small_data(schemes=[Counting()])
    for folder in ("first", "second"):
        fitted(tmp_path / folder, model_folder, data=data, max_steps=2)
        assert data.schemes[0].seen == 8


def test_what_a_scheme_remembers_is_part_of_the_checkpoint(tmp_path, model_folder):
    half = fitted(tmp_path / "half", model_folder, data=small_data(schemes=[Counting()]), max_steps=3)
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert half.data.schemes[0].seen == 12
    data = small_data(schemes=[Counting()])
    fitted(tmp_path / "rest", model_folder, data=data, max_steps=5, ckpt_path=tmp_path / "half.ckpt")
    assert data.schemes[0].seen == 20


@dataclass(frozen=True)
class OneMore(SamplingScheme):
    """Returns a number of groups that is not divisible by the updates."""

    def groups(self, count, below, rollout):
        return below(count + 1)


def test_a_number_of_groups_that_does_not_divide_is_an_error(tmp_path, model_folder):
    message = re.escape(
        "`schemes` (OneMore(),) gave 5 groups; return the same number on each rank, a positive multiple"
    )
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, model_folder, data=small_data(schemes=[OneMore()], updates_per_rollout=2))


def test_ranks_with_different_numbers_of_groups_are_an_error():
    class TwoRanks(ScriptedStage):
        def over_ranks(self, tally):
            return tally + Tally(minima={"groups": 2}, maxima={"groups": 2})

    with pytest.raises(ValueError, match="gave from 2 to 4 groups, by rank"):
        SchemeStack([Halved()], 0).groups(TwoRanks((True,) * 8), 4)


class Tokenized(Callback):
    """Return how often each prompt was tokenized."""

    def __init__(self):
        self.texts = []

    def on_fit_start(self, trainer, pl_module):
        tokenizer = pl_module.policy.tokenizer
        encode = tokenizer.encode

        def noted(text, **options):
            self.texts.append(text)
            return encode(text, **options)

        tokenizer.encode = noted


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prompt_is_tokenized_once(tmp_path, model_folder, overlap):
    class ElsewhereEngine(RecordingEngine):
        concurrent = True

    noted = Tokenized()
    data = dynamic_data(ElsewhereEngine(), overlap=overlap, validation=[{"prompt": "1001 + 1"}])
    fitted(tmp_path, model_folder, data=data, callbacks=[noted], max_steps=6)
    assert len(noted.texts) == len(set(noted.texts)) > 10


def test_schemes_of_different_ranks_and_rollouts_choose_by_other_random_numbers():
    """The sampling seeds of trajectories are the same on all ranks."""

    def numbers(rank, rollout):
        trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": 2})
        no_rewards = SimpleNamespace(names=[], may_fail=[])
        parts = None, SimpleNamespace(skipped=0), no_rewards, "score", "mask", 2, 1.0, 1
        return tuple(torch.rand(3, generator=GroupSampler(*parts, (0, rollout), trainer, []).generator).tolist())

    assert numbers(0, 0) == numbers(0, 0)
    assert len({numbers(rank, rollout) for rank in (0, 1) for rollout in (0, 1)}) == 4
