"""From prompts to micro-batches: what is generated, rewarded, counted, left out and repeated."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from lightning import Callback, Trainer

from aggregate_po import EntropyBonus, GroupedRewards, K3Penalty, PolicyBatch
from aggregate_po.advantages import GroupCentered, GroupNormalized
from aggregate_po.recipes import dapo, dr_grpo, gmpo, grpo, holder_po, pmpo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules import tally as tally_file
from lightning_modules.addition import AdditionProblems
from lightning_modules.callbacks.report import RunReport, print_table
from lightning_modules.data import advantages as advantages_file
from lightning_modules.data import metrics as metrics_file
from lightning_modules.data.evaluation import EvaluationLoader
from lightning_modules.rollouts import Completions
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    NotedAdvantages,
    RecordingEngine,
    copied,
    exact,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    quiet_trainer,
    small_data,
    text_reward,
    tokens_of,
)


class ScriptedEngine(RecordingEngine):
    """Completions of the given lengths, finished or not, group after group; tokens and log-probabilities by number."""

    def __init__(self, lengths, finished=None):
        super().__init__()
        self.lengths = torch.tensor(lengths)
        self.finished = torch.ones(len(lengths), dtype=torch.bool) if finished is None else torch.tensor(finished)

    def generate(self, prompts, sampling):
        assert len(self.lengths) == len(prompts) * sampling.samples_per_prompt
        width = int(self.lengths.max())
        mask = torch.arange(width) < self.lengths.unsqueeze(-1)
        numbers = torch.arange(len(mask) * width).reshape(mask.shape)
        token_ids = torch.where(mask, 2 + numbers % 250, 0)
        log_probs = torch.where(mask, -4.0 - numbers % 7 / 4, 0)
        self.prompts.append(prompts)
        self.sampling.append(sampling)
        self.generated.append(Completions(token_ids, mask, log_probs, self.finished))
        return self.generated[-1]


def listed_rewards(values):
    """A reward that gives these numbers in turn."""
    remaining = iter(values)
    return lambda completion, example: next(remaining)


def rollout_of(tmp_path, model_folder, objective=None, data=None, updates=1, **options):
    """The micro-batches and gradients of one rollout."""
    recorder = BatchRecorder()
    run = fitted(tmp_path, model_folder, objective, data=data, callbacks=[recorder], max_steps=updates, **options)
    run.batches, run.recorder = recorder.batches, recorder
    return run


# Construction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts_per_rollout": 0}, "`prompts_per_rollout` is 0; pass a whole number, 1 or more"),
        ({"prompts_per_rollout": 2.5}, "`prompts_per_rollout` is 2.5; pass a whole number, 1 or more"),
        ({"group_size": 2.5}, "`group_size` is 2.5; pass a whole number, 2 or more"),
        ({"updates_per_rollout": 0}, "`updates_per_rollout` is 0; pass a whole number, 1 or more"),
        ({"epochs_per_rollout": -1}, "`epochs_per_rollout` is -1; pass a whole number, 1 or more"),
        ({"max_completion_length": 0}, "`max_completion_length` is 0; pass a whole number, 1 or more"),
        ({"tokens_per_micro_batch": 0}, "`tokens_per_micro_batch` is 0; pass a whole number, 1 or more"),
        ({"group_size": 1}, "`group_size` is 1; pass 2 or more, since an advantage compares"),
        ({"temperature": 0.0}, r"`temperature` is 0\.0; pass a positive number, 1\.0 for the policy itself"),
        ({"temperature": math.nan}, "`temperature` is nan; pass a positive number"),
        ({"kl_in_reward": -0.1}, r"`kl_in_reward` is -0\.1; pass 0 for none, or a positive weight"),
        ({"kl_in_reward": math.nan}, "`kl_in_reward` is nan; pass 0 for none"),
        ({"dataset": []}, r"`dataset` is \[\], which has no prompts; pass at least one example"),
        ({"validation": []}, r"`validation` is \[\], which has no prompts; pass at least one example"),
        ({"truncated": "drop"}, r"`truncated` is 'drop'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_name_argument_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_data(**arguments)


@pytest.mark.parametrize("name", ["dataset", "validation"])
def test_a_missing_file_is_named_with_its_argument(name):
    with pytest.raises(FileNotFoundError, match=rf"`{name}` is 'nowhere\.jsonl', which is not a file"):
        small_data(**{name: "nowhere.jsonl"})


def test_an_empty_file_has_no_prompts(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"`dataset` is '.*empty\.jsonl', which has no prompts"):
        small_data(dataset=str(tmp_path / "empty.jsonl"))


def test_without_a_trainer_there_is_no_policy():
    with pytest.raises(RuntimeError, match=r"no trainer; pass it to Trainer\.fit or Trainer\.validate"):
        small_data().policy  # noqa: B018


def test_prompts_may_come_as_a_list_or_a_file(tmp_path, model_folder):
    problems = list(AdditionProblems(8))
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    engines = []
    for dataset in (problems, str(path), AdditionProblems(8)):
        engines.append(RecordingEngine())
        fitted(tmp_path, model_folder, data=small_data(dataset=dataset, rollouts=engines[-1]))
    assert engines[0].prompts == engines[1].prompts == engines[2].prompts
    assert torch.equal(engines[0].generated[0].token_ids, engines[1].generated[0].token_ids)


@pytest.mark.parametrize(
    ("arguments", "accumulate", "message"),
    [
        (
            {"updates_per_rollout": 3},
            1,
            r"`prompts_per_rollout` is 4, which 3 updates on 1 data-parallel ranks do not divide; .* 3\.",
        ),
        ({}, 17, "`accumulate_grad_batches` is 17, but an update has only 16 completions on each rank; pass at most"),
        ({"updates_per_rollout": 2}, 9, "`accumulate_grad_batches` is 9, but an update has only 8 completions"),
    ],
)
def test_a_rollout_that_does_not_divide_is_refused_before_anything_is_generated(
    tmp_path, model_folder, arguments, accumulate, message
):
    engine = RecordingEngine()
    with pytest.raises(ValueError, match=message):
        fitted(
            tmp_path, model_folder, data=small_data(rollouts=engine, **arguments), accumulate_grad_batches=accumulate
        )
    assert engine.prompts == []


def test_one_completion_per_micro_batch_is_allowed(tmp_path, model_folder):
    run = rollout_of(tmp_path, model_folder, accumulate_grad_batches=16)
    assert len(run.batches) == 16
    assert run.trainer.global_step == 1


def test_defaults():
    data = RolloutDataModule(AdditionProblems(2), text_reward)
    assert (data.group_size, data.prompts_per_rollout, data.temperature) == (8, 16, 1.0)
    assert (data.truncated, data.kl_in_reward, data.advantages) == ("zero_reward", 0.0, GroupNormalized())


# What is generated


class ReportingEngine(RecordingEngine):
    """Counts its rollouts, in the log too; notes how often it was closed."""

    closed = 0

    def metrics(self):
        return {"rollout/number": len(self.generated)}

    def close(self):
        self.closed += 1


def test_an_engine_is_heard_with_each_rollout_and_closed_at_the_end(tmp_path, model_folder):
    engine = ReportingEngine()
    recorder = BatchRecorder()
    run = fitted(tmp_path, model_folder, data=small_data(rollouts=engine), max_steps=2, callbacks=[recorder])
    assert [metrics["rollout/number"] for metrics in recorder.metrics] == [1, 2]
    assert run.metrics["rollout/number"] == 2
    assert engine.closed == 1


def test_the_engine_is_asked_for_what_was_configured(tmp_path, model_folder):
    engine = RecordingEngine()
    run = fitted(tmp_path, model_folder, data=small_data(rollouts=engine, temperature=0.8), max_steps=2)
    sampling = engine.sampling[0]
    assert (sampling.max_completion_length, sampling.temperature, sampling.samples_per_prompt) == (6, 0.8, 4)
    assert sampling.stop_token_ids == run.module.policy.stop_token_ids
    assert len(sampling.stop_token_ids) > 10
    texts = [run.module.policy.tokenizer.decode(prompt) for prompts in engine.prompts for prompt in prompts]
    questions = [problem["prompt"] for problem in AdditionProblems(16)]
    assert len(texts) == len(set(texts)) == 8  # two rollouts of four, no prompt twice
    assert set(texts) < set(questions)
    assert texts != questions[:8]


def test_seeds_decide_the_rollout(tmp_path, model_folder):
    def run(**options):
        engine = RecordingEngine()
        fitted(tmp_path, model_folder, data=small_data(rollouts=engine, **options), max_steps=3)
        return engine

    first, again, other = run(seed=4), run(seed=4), run(seed=5)
    assert first.prompts == again.prompts != other.prompts
    assert torch.equal(first.generated[1].token_ids, again.generated[1].token_ids)
    seeds = [sampling.seed for engine in (first, other) for sampling in engine.sampling]
    assert len(set(seeds)) == 6
    assert [sampling.seed for sampling in again.sampling] == seeds[:3]


def as_one_of(ranks, rank, monkeypatch):
    """Let a trainer take its process for one of several."""
    share = {"num_replicas": ranks, "rank": rank}
    monkeypatch.setattr(Trainer, "world_size", property(lambda self: ranks))
    monkeypatch.setattr(Trainer, "global_rank", property(lambda self: rank))
    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", property(lambda self: share))


def test_ranks_share_the_prompts_and_draw_with_seeds_of_their_own(tmp_path, model_folder, monkeypatch):
    engines = []
    for rank in (None, 0, 1):
        engines.append(RecordingEngine())
        with monkeypatch.context() as patched:
            if rank is not None:
                as_one_of(2, rank, patched)
                # As if the other rank had generated the same.
                for file in (advantages_file, tally_file):
                    patched.setattr(file, "gathered_over_ranks", lambda rows, trainer: rows.repeat(2, 1))
                patched.setattr(metrics_file, "gathered_values", lambda rewards, trainer: [rewards, rewards])
            fitted(tmp_path, model_folder, data=small_data(rollouts=engines[-1]))
    alone, first, second = engines
    assert first.prompts[0] == alone.prompts[0][0::2]
    assert second.prompts[0] == alone.prompts[0][1::2]
    assert first.sampling[0].seed != second.sampling[0].seed


def test_updates_divide_among_ranks_too(tmp_path, model_folder, monkeypatch):
    as_one_of(3, 0, monkeypatch)
    with pytest.raises(
        ValueError, match=r"which 2 updates on 3 data-parallel ranks do not divide; pass a multiple of 6"
    ):
        fitted(tmp_path, model_folder, data=small_data(updates_per_rollout=2))


def test_micro_batches_hold_the_rollout(tmp_path, model_folder):
    """Every completion once, with its own prompt, log-probabilities and advantage."""
    engine = RecordingEngine(shift=0.3)
    advantages = torch.arange(16.0) - 7.5
    data = small_data(rollouts=engine, updates_per_rollout=2, advantages=NotedAdvantages(lambda step: advantages))
    run = rollout_of(tmp_path, model_folder, data=data, updates=2, accumulate_grad_batches=3)
    assert [batch.closes_update for batch in run.batches] == [False, False, True] * 2
    generated, rows = engine.generated[0], []
    for batch in run.batches:
        for index, advantage in enumerate(batch.policy.advantages.tolist()):
            row, mask = int(advantage + 7.5), batch.completion_mask[index]
            rows.append(row)
            assert batch.completion_ids[index][mask].tolist() == tokens_of(generated, row)
            expected = generated.log_probs[row][generated.mask[row]]
            assert torch.equal(batch.policy.old_log_probs[index][mask], expected)
            assert torch.equal(batch.policy.response_mask[index], mask)
            prompt = batch.prompt_of[index]
            assert batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist() == engine.prompts[0][row // 4]
    assert sorted(rows[:8]) == list(range(8))
    assert sorted(rows) == list(range(16))


def forward_tokens(batch):
    return batch.prompt_ids.numel() + batch.completion_ids.numel()


def test_micro_batches_are_as_large_as_the_budget_allows(tmp_path, model_folder):
    def rollout(**options):
        data = small_data(advantages=NotedAdvantages(lambda step: torch.arange(16.0) - 7.5), **options)
        return rollout_of(tmp_path, model_folder, data=data, accumulate_grad_batches=8).batches

    batches = rollout(tokens_per_micro_batch=70)
    used = [batch for batch in batches if batch.policy.response_mask.any()]
    assert len(batches) == len(rollout()) == 8
    assert 1 < len(used) < 8 == sum(bool(batch.policy.response_mask.any()) for batch in rollout())
    assert max(map(forward_tokens, used)) <= 70
    assert sum(len(batch.completion_ids) for batch in used) == 16


def test_a_chat_template_wraps_the_prompt(tmp_path, model_folder):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>>{% endif %}"
    )
    engine = RecordingEngine()
    module = PolicyModule(model_folder, gmpo())
    module.configure_model()
    module.policy.tokenizer.chat_template = template
    data = small_data(rollouts=engine, dataset=[{"prompt": "1 + 1"}], prompts_per_rollout=1, chat_template=True)
    fitted(tmp_path, model_folder, data=data, module=module)
    assert module.policy.tokenizer.decode(engine.prompts[0][0]) == "<user>1 + 1>>"


def test_messages_and_a_system_text_reach_engine_reward_and_samples(tmp_path, model_folder):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ mark }}"
    module = PolicyModule(model_folder, gmpo())
    module.configure_model()
    module.policy.tokenizer.chat_template = template
    engine, seen = RecordingEngine(), []
    messages = [{"role": "user", "content": "1 + 1"}]
    data = small_data(
        rollouts=engine,
        reward=lambda completion, example: seen.append(example["prompt"]) or 0.0,
        dataset=[{"prompt": messages}],
        validation=[{"prompt": messages}],
        prompts_per_rollout=1,
        chat_template=True,
        chat_template_kwargs={"mark": "!"},
        system_prompt="Add.",
    )
    fitted(tmp_path, model_folder, data=data, module=module, callbacks=[RunReport(0)])
    assert module.policy.tokenizer.decode(engine.prompts[0][0]) == "<system>Add.<user>1 + 1!"
    assert seen[:4] == [messages] * 4
    assert "**user: 1 + 1**" in (tmp_path / "samples.md").read_text()


@pytest.mark.parametrize("name", ["dataset", "validation"])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("use <tool>", "has the token '<tool>' with id 269, but the model has embeddings for 269 tokens"),
        (
            "1" * 250,
            "has 250 tokens, with `max_completion_length` 256, but `max_model_length` of the rollout engine is 255",
        ),
        ([{"role": "user", "content": "1"}], "is a list of messages, but `chat_template` is False"),
    ],
)
def test_a_prompt_that_cannot_be_used_stops_the_run_before_anything_is_generated(
    tmp_path, model_folder, name, prompt, message
):
    class LimitedEngine(RecordingEngine):
        max_model_length = 255

    module, engine = PolicyModule(model_folder, gmpo()), LimitedEngine()
    module.configure_model()
    module.policy.tokenizer.add_tokens(["<tool>"], special_tokens=True)
    data = small_data(rollouts=engine, **{name: [{"prompt": "1"}, {"prompt": "2"}, {"prompt": prompt}]})
    with pytest.raises(ValueError, match=rf"^`{name}`, prompt 2 \(of 0 to 2\): the prompt {re.escape(message)}"):
        fitted(tmp_path, model_folder, data=data, module=module)
    assert engine.prompts == []


def test_held_out_prompts_are_checked_for_an_evaluation_too(tmp_path, model_folder):
    data = small_data(validation=[{"prompt": "1"}, {"prompt": [{"role": "user", "content": "1"}]}])
    with pytest.raises(ValueError, match=r"^`validation`, prompt 1 \(of 0 to 1\): the prompt is a list of messages"):
        quiet_trainer(tmp_path).validate(PolicyModule(model_folder, gmpo()), data)


# Rewards and advantages


def test_rewards_see_the_text_without_its_stop_token_and_the_example(tmp_path, model_folder):
    engine, seen = RecordingEngine(), []

    def reward(completion, example):
        seen.append((completion, example))
        return len(seen)

    run = fitted(tmp_path, model_folder, data=small_data(rollouts=engine, reward=reward))
    problems = {problem["prompt"]: problem for problem in AdditionProblems(16)}
    tokenizer = run.module.policy.tokenizer
    for row, (completion, example) in enumerate(seen):
        assert example == problems[tokenizer.decode(engine.prompts[0][row // 4])]
        tokens = tokens_of(engine.generated[0], row)
        assert completion == tokenizer.decode(tokens[:-1] if engine.generated[0].finished[row] else tokens)
    assert len(seen) == 16
    assert 0 < engine.generated[0].finished.sum() < 16


class RepeatingEngine(RecordingEngine):
    """Each completion has the given tokens."""

    def __init__(self, tokens, finished):
        super().__init__()
        self.tokens, self.finished = tokens, finished

    def generate(self, prompts, sampling):
        count = len(prompts) * sampling.samples_per_prompt
        token_ids = torch.tensor([self.tokens] * count)
        mask = torch.ones_like(token_ids, dtype=torch.bool)
        return Completions(token_ids, mask, torch.full(mask.shape, -1.0), torch.tensor([self.finished] * count))


@pytest.mark.parametrize(
    ("tokens", "finished", "skip", "expected"),
    [
        ("<pad>4<pad>2<eos>", True, False, "<pad>4<pad>2"),
        ("<pad>4<pad>2<eos>", True, True, "42"),
        ("4<eos><eos>", True, False, "4<eos>"),  # only the one that ended it
        ("4<eos>", False, False, "4<eos>"),  # as if an engine did not know this stop token
        ("<eos>", True, False, ""),
    ],
)
def test_only_the_stop_token_is_hidden_from_rewards_evaluations_and_samples(
    tmp_path, model_folder, tokens, finished, skip, expected
):
    seen = []

    def reward(completion, example):
        seen.append(completion)
        return 0.0

    module = PolicyModule(model_folder, gmpo())
    module.configure_model()
    engine = RepeatingEngine(module.policy.tokenizer.encode(tokens), finished)
    options = {"reward": reward, "validation": [{"prompt": "1"}], "skip_special_tokens": skip}
    data = small_data(rollouts=engine, **options)
    fitted(tmp_path, model_folder, data=data, module=module, callbacks=[RunReport(0)])
    assert (tmp_path / "samples.md").read_text().count(f"**1**\n\n```text\n{expected}\n```\n") == 2
    assert set(seen) == {expected}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", 1j])
def test_a_reward_that_is_no_finite_number_is_an_error(tmp_path, model_folder, value):
    with pytest.raises(ValueError, match=rf"<lambda> gave {re.escape(repr(value))}.* which is not .* finite number"):
        fitted(tmp_path, model_folder, data=small_data(reward=lambda completion, example: value))


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_truth_values_and_integers_are_rewards(tmp_path, model_folder, value):
    run = fitted(tmp_path, model_folder, data=small_data(reward=lambda completion, example: value))
    assert run.metrics["reward"].item() == 1


@pytest.mark.parametrize("estimator", [GroupNormalized(), GroupCentered(), NotedAdvantages(lambda step: step.rewards)])
def test_the_estimator_of_advantages_is_pluggable(tmp_path, model_folder, estimator):
    rewards = [1.0, 0.0, 0.0, 0.5, 2.0, 1.0, 0.25, 0.25]
    engine = ScriptedEngine([2] * 8)
    data = small_data(
        reward=listed_rewards(rewards), rollouts=engine, prompts_per_rollout=2, group_size=4, advantages=estimator
    )
    (batch,) = rollout_of(tmp_path, model_folder, data=data).batches
    expected = estimator(GroupedRewards(torch.tensor(rewards), 4))
    assert torch.allclose(batch.policy.advantages, expected[expected != 0])
    assert batch.policy.totals.completions == 8


LENGTHS = [2, 3, 3, 1, 3, 2, 3, 3]
FINISHED = [True, False, True, True, False, True, False, False]
REWARDS = [1.0, 0.75, 0.0, 0.5, 2.0, 1.0, 0.0, 3.0]


def truncated_rollout(tmp_path, model_folder, rule):
    engine, noted = ScriptedEngine(LENGTHS, FINISHED), NotedAdvantages()
    data = small_data(
        reward=listed_rewards(REWARDS), rollouts=engine, prompts_per_rollout=2, truncated=rule, advantages=noted
    )
    run = rollout_of(tmp_path, model_folder, dapo(), data=data)
    return run, run.batches[0], noted.steps[0].rewards.tolist(), engine.generated[0]


def centered(rewards):
    groups = [rewards[:4], rewards[4:]]
    return [reward - sum(group) / 4 for group in groups for reward in group]


def test_a_cut_off_completion_may_be_scored_as_it_stands(tmp_path, model_folder):
    run, batch, rewards, generated = truncated_rollout(tmp_path, model_folder, "score")
    assert rewards == REWARDS
    assert batch.policy.advantages.tolist() == pytest.approx(centered(REWARDS))
    assert torch.equal(batch.policy.response_mask, generated.mask)
    assert (batch.policy.totals.completions, batch.policy.totals.tokens) == (8, sum(LENGTHS))
    assert run.metrics["completions/clipped_ratio"].item() == 4 / 8


def test_a_cut_off_completion_may_have_reward_zero(tmp_path, model_folder):
    run, batch, rewards, generated = truncated_rollout(tmp_path, model_folder, "zero_reward")
    zeroed = [reward if finished else 0.0 for reward, finished in zip(REWARDS, FINISHED, strict=True)]
    assert rewards == zeroed
    assert batch.policy.advantages.tolist() == pytest.approx(centered(zeroed))
    assert torch.equal(batch.policy.response_mask, generated.mask)
    assert (batch.policy.totals.completions, batch.policy.totals.tokens) == (8, sum(LENGTHS))
    assert run.metrics["completions/clipped_ratio"].item() == 4 / 8
    assert run.metrics["reward"].item() == pytest.approx(sum(zeroed) / 8)


def test_a_cut_off_completion_may_count_in_its_baseline_only(tmp_path, model_folder):
    run, batch, rewards, generated = truncated_rollout(tmp_path, model_folder, "mask")
    kept = [row for row, finished in enumerate(FINISHED) if finished]
    assert rewards == REWARDS
    # Those that are masked cannot contribute, so the model does not read them.
    assert len(batch.completion_ids) == len(kept)
    expected = [centered(REWARDS)[row] for row in kept]
    assert batch.policy.advantages.tolist() == pytest.approx(expected)
    assert torch.equal(batch.policy.response_mask, generated.mask[kept])
    assert batch.policy.totals.completions == len(kept)
    assert batch.policy.totals.tokens == sum(LENGTHS[row] for row in kept)
    assert run.metrics["completions/clipped_ratio"].item() == 4 / 8
    assert run.metrics["completions/trained_ratio"].item() == 4 / 8
    assert run.metrics["completions/mean_length"].item() == pytest.approx(sum(LENGTHS) / 8)


def test_metrics_of_the_rollout(tmp_path, model_folder):
    rewards = [1.0, 0.0, 0.0, 0.5, 2.0, 2.0, 2.0, 2.0]
    data = small_data(reward=listed_rewards(rewards), rollouts=ScriptedEngine(LENGTHS), prompts_per_rollout=2)
    run = rollout_of(tmp_path, model_folder, data=data)
    values = torch.tensor(rewards).double()
    expected = {
        "reward": values.mean(),
        "reward_group_std": values[:4].std() / 2,
        "reward_std": values.std(correction=0),
        "frac_reward_zero_std": 0.5,
        "completions/mean_length": sum(LENGTHS) / 8,
        "completions/clipped_ratio": 0.0,
        "completions/trained_ratio": 0.5,
        "num_tokens": sum(LENGTHS),
        "rewards/<lambda>/mean": values.mean(),
    }
    for name, value in expected.items():
        assert run.metrics[name].item() == pytest.approx(float(value)), name
    totals = run.batches[0].policy.totals
    assert totals.reward_mean == pytest.approx(float(expected["reward"]))
    assert totals.reward_std == pytest.approx(float(expected["reward_std"]))


@pytest.mark.parametrize(("offset", "scale"), [(1e8, 1.0), (-1e12, 0.5), (0.0, 1e200)])
def test_the_deviation_of_rewards_depends_on_neither_their_offset_nor_their_unit(tmp_path, model_folder, offset, scale):
    """Mean squares minus a squared mean would have no digits left, or overflow."""
    values = torch.tensor([1.0, 0.0, 0.0, 0.5, 2.0, 2.0, 2.0, 2.0]).double()
    reward = listed_rewards((offset + scale * values).tolist())
    data = small_data(reward=reward, rollouts=ScriptedEngine(LENGTHS), prompts_per_rollout=2)
    run = rollout_of(tmp_path, model_folder, data=data)
    assert run.batches[0].policy.totals.reward_std == pytest.approx(scale * float(values.std(correction=0)))
    if scale < 1e38:  # metrics are logged in float32
        assert run.metrics["reward_group_std"].item() == pytest.approx(scale * float(values[:4].std()) / 2)


def test_rewards_reach_the_estimator_in_float64(tmp_path, model_folder):
    """Differences of 1e-9, which float32 does not have; advantages have the precision of the log-probabilities."""
    rewards = [1 + 1e-9, 1.0, 1.0, 1.0] * 2
    noted = NotedAdvantages(GroupNormalized(delta=0.0))
    data = small_data(
        reward=[listed_rewards(rewards), listed_rewards([0.1] * 8)],
        reward_weights=[1.0, 1 / 3],
        advantages=noted,
        rollouts=ScriptedEngine(LENGTHS),
        prompts_per_rollout=2,
    )
    run = rollout_of(tmp_path, model_folder, data=data)
    (seen,) = noted.steps
    assert seen.rewards.tolist() == pytest.approx([reward + 0.1 / 3 for reward in rewards], rel=1e-15)
    assert seen.components.tolist() == [[reward, 0.1] for reward in rewards]
    advantages = run.batches[0].policy.advantages
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5] * 2, rel=1e-5)
    assert run.metrics["frac_reward_zero_std"].item() == 0


def test_rewards_that_are_equal_on_paper_are_no_signal(tmp_path, model_folder):
    data = small_data(
        reward=listed_rewards([0.1 + 0.2, 0.3, 0.3, 0.3] * 2),
        advantages=GroupNormalized(delta=0.0),
        rollouts=ScriptedEngine(LENGTHS),
        prompts_per_rollout=2,
    )
    run = rollout_of(tmp_path, model_folder, data=data)
    assert run.metrics["frac_reward_zero_std"].item() == 1
    assert run.metrics["completions/trained_ratio"].item() == 0


@pytest.mark.parametrize("reward", [1e39, -1e300])
def test_advantages_beyond_float32_are_its_largest_numbers(tmp_path, model_folder, reward):
    data = small_data(
        reward=listed_rewards([reward, 0.0, 0.0, 0.0] * 2),
        advantages=GroupCentered(),
        rollouts=ScriptedEngine(LENGTHS),
        prompts_per_rollout=2,
    )
    advantages = rollout_of(tmp_path, model_folder, data=data).batches[0].policy.advantages
    assert torch.isfinite(advantages).all()
    assert advantages.abs().max() == torch.finfo(torch.float32).max


class Moved(Callback):
    """Moves the policy away from its reference before the first rollout."""

    def on_fit_start(self, trainer, pl_module):
        torch.manual_seed(0)
        for parameter in pl_module.model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        self.weights = copied(pl_module.model)


@pytest.mark.parametrize("truncated", ["score", "mask"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_divergence_may_be_taken_off_the_rewards(tmp_path, model, model_folder, truncated, temperature):
    engine, moved, noted = RecordingEngine(), Moved(), NotedAdvantages()
    data = small_data(
        reward=lambda completion, example: 0.5,
        rollouts=engine,
        advantages=noted,
        kl_in_reward=0.25,
        temperature=temperature,
        truncated=truncated,
        updates_per_rollout=2,
    )
    fitted(tmp_path, model_folder, data=data, callbacks=[moved], accumulate_grad_batches=3)
    prompts, generated = engine.prompts[0], engine.generated[0]
    with torch.no_grad():
        reference = plain_log_prob_matrix(model, prompts, generated, temperature)
        model.load_state_dict(moved.weights, strict=False)
        policy = plain_log_prob_matrix(model, prompts, generated, temperature)
    divergence = ((policy - reference) * generated.mask).sum(dim=-1)  # also of those that count in the baseline only
    assert divergence.abs().max() > 0.1
    assert 0 < generated.finished.sum() < len(generated.finished)
    assert noted.steps[0].rewards.tolist() == pytest.approx((0.5 - 0.25 * divergence).tolist(), abs=1e-5)


def test_without_the_divergence_in_the_rewards_a_reference_changes_none(tmp_path, model_folder):
    noted = NotedAdvantages()
    data = small_data(reward=lambda completion, example: 0.5, advantages=noted)
    run = fitted(tmp_path, model_folder, grpo(penalties=[K3Penalty(0.1)]), data=data, callbacks=[Moved()])
    assert noted.steps[0].rewards.tolist() == [0.5] * 16
    assert run.module.policy.keeps_reference


# Updates and micro-batches

# Groups of four: without difference, with, with, without; the last two are another update where there are two.
GROUPED = [1.0] * 4 + [1.0, 0.0, 0.0, 0.5] + [0.0, 2.0, 0.0, 1.0] + [0.0] * 4
OBJECTIVES = {
    "grpo": grpo(),
    "dapo": dapo(),
    "dr_grpo": dr_grpo(max_completion_length=6),
    "gmpo": gmpo(),
    "pmpo": pmpo(),
}


def exact_advantages(step):
    return GroupNormalized()(replace(step, rewards=step.rewards.double()))


def grouped_rollout(tmp_path, model_folder, objective, updates=1, accumulate=1):
    engine = RecordingEngine(shift=0.3)
    data = small_data(
        reward=listed_rewards(GROUPED),
        rollouts=engine,
        updates_per_rollout=updates,
        advantages=NotedAdvantages(exact_advantages),
    )
    still = {"warmup_steps": 0, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-300)}
    module = ExactPolicy(model_folder, objective, **still)
    options = {"data": data, "updates": updates, "accumulate_grad_batches": accumulate, "module": module}
    return rollout_of(tmp_path, model_folder, objective, precision="64-true", **options), engine


def gradient_of_all_rows(model, objective, engine, rows):
    """Gradient of minus the objective on these completions, none left out, by plain forward passes."""
    prompts, generated = engine.prompts[0], engine.generated[0]
    advantages = exact_advantages(GroupedRewards(torch.tensor(GROUPED), 4))
    exact(model).double()
    reference = plain_log_prob_matrix(model, prompts, generated).detach()[rows]
    log_probs = plain_log_prob_matrix(model, prompts, generated)[rows]
    batch = PolicyBatch(generated.log_probs[rows], generated.mask[rows], advantages[rows], ref_log_probs=reference)
    model.zero_grad()
    (-objective(log_probs, batch)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_groups_without_gradient_are_left_out_and_change_no_gradient(
    tmp_path, model, model_folder, name, updates, accumulate
):
    run, engine = grouped_rollout(tmp_path, model_folder, OBJECTIVES[name], updates, accumulate)
    assert sum(len(batch.completion_ids) for batch in run.batches) == 8
    assert run.metrics["completions/trained_ratio"].item() == 0.5
    for update, rows in enumerate(torch.arange(16).tensor_split(updates)):
        expected = gradient_of_all_rows(model, OBJECTIVES[name], engine, rows)
        assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
        assert largest_difference(run.recorder.gradients[update], expected) < 1e-12
    for batch in run.batches:
        rows = torch.arange(16).tensor_split(updates)[run.batches.index(batch) // accumulate]
        assert batch.policy.totals.completions == len(rows)
        assert batch.policy.totals.tokens == engine.generated[0].mask[rows].sum().item()


@pytest.mark.parametrize("penalty", [K3Penalty(0.1), EntropyBonus(0.1)], ids=lambda penalty: type(penalty).__name__)
def test_no_group_is_left_out_where_there_is_a_penalty(tmp_path, model, model_folder, penalty):
    objective = grpo(penalties=[penalty])
    run, engine = grouped_rollout(tmp_path, model_folder, objective, accumulate=3)
    assert sum(len(batch.completion_ids) for batch in run.batches) == 16
    assert run.metrics["completions/trained_ratio"].item() == 1
    expected = gradient_of_all_rows(model, objective, engine, torch.arange(16))
    assert largest_difference(run.recorder.gradients[0], expected) < 1e-12
    if isinstance(penalty, EntropyBonus):
        plain = gradient_of_all_rows(model, grpo(), engine, torch.arange(16))
        assert largest_difference(plain, expected) > 1e-3


def test_an_update_in_which_no_group_has_gradient_is_a_step_of_zero(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0, updates_per_rollout=2)
    run = rollout_of(tmp_path, model_folder, data=data, updates=2, accumulate_grad_batches=3)
    assert run.trainer.global_step == 2
    assert len(run.batches) == 6
    assert not any(batch.policy.response_mask.any() for batch in run.batches)
    assert all(batch.policy.totals.completions == 8 for batch in run.batches)
    assert all(float(gradient.abs().max()) == 0 for gradient in run.recorder.gradients[0].values())
    assert run.metrics["completions/trained_ratio"].item() == 0
    assert run.metrics["frac_reward_zero_std"].item() == 1


def test_micro_batches_without_completions_fill_up_the_update(tmp_path, model_folder):
    """Four completions contribute and there are six micro-batches: the last two are there for the other ranks."""
    rewards = [1.0] * 4 + [1.0, 0.0, 0.0, 0.5] + [2.0] * 8
    data = small_data(reward=listed_rewards(rewards))
    run = rollout_of(tmp_path, model_folder, data=data, accumulate_grad_batches=6)
    assert [int(batch.policy.response_mask.any(dim=-1).sum()) for batch in run.batches] == [1, 1, 1, 1, 0, 0]
    assert [batch.closes_update for batch in run.batches] == [False] * 5 + [True]
    assert run.trainer.global_step == 1
    assert run.metrics["grad_norm"].item() > 0


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_an_update_is_one_optimizer_step(tmp_path, model_folder, accumulate):
    """Eight completions are not divisible by three; the trainer steps at the end of an update only."""
    data = small_data(updates_per_rollout=2, epochs_per_rollout=2)
    run = rollout_of(tmp_path, model_folder, data=data, updates=8, accumulate_grad_batches=accumulate)
    assert len(run.batches) == 8 * accumulate
    assert run.recorder.steps_after == [(index + 1) // accumulate for index in range(8 * accumulate)]
    closing = [index for index, batch in enumerate(run.batches) if batch.closes_update]
    assert closing == [accumulate * (number + 1) - 1 for number in range(8)]


def test_epochs_go_through_the_same_updates_again(tmp_path, model_folder):
    engine = RecordingEngine()
    data = small_data(rollouts=engine, updates_per_rollout=2, epochs_per_rollout=3)
    run = rollout_of(tmp_path, model_folder, data=data, updates=12)
    assert len(engine.generated) == 2
    texts = [batch.completion_ids.tolist() for batch in run.batches]
    assert texts[0:2] == texts[2:4] == texts[4:6]
    assert texts[6:8] == texts[8:10] == texts[10:12] != texts[0:2]
    assert texts[0] != texts[1]
    old = [batch.policy.old_log_probs for batch in run.batches]
    assert torch.equal(old[0], old[4])


@pytest.mark.parametrize(("updates", "epochs", "steps"), [(1, 1, 4), (2, 2, 8), (2, 3, 9)])
def test_progress_runs_from_zero_to_one_step_before_the_end(tmp_path, model_folder, updates, epochs, steps):
    data = small_data(updates_per_rollout=updates, epochs_per_rollout=epochs)
    run = rollout_of(tmp_path, model_folder, data=data, updates=steps, accumulate_grad_batches=2)
    progress = [batch.policy.totals.progress for batch in run.batches if batch.closes_update]
    assert progress == pytest.approx([number / steps for number in range(steps)])
    assert [batch.policy.totals.progress for batch in run.batches][::2] == progress


def test_progress_is_never_more_than_one(tmp_path, model_folder):
    """The last rollout may reach beyond the last step."""
    run = rollout_of(tmp_path, model_folder, data=small_data(updates_per_rollout=4), updates=6)
    assert all(
        0 <= batch.policy.totals.progress <= 1 for batch in run.data.train_dataloader().buffer._make_rollout(0).batches
    )


# Held-out prompts


def test_held_out_prompts_are_completed_sampled_and_greedily(tmp_path, model_folder):
    engine, held_out = RecordingEngine(), list(AdditionProblems(5, held_out=True))
    data = small_data(validation=held_out, rollouts=engine, temperature=0.8)
    trainer = quiet_trainer(tmp_path)
    module = PolicyModule(model_folder, gmpo())
    trainer.validate(module, data, verbose=False)
    engine.generated.clear()
    engine.sampling.clear()
    (sampled,), (greedy,) = (list(loader) for loader in data.val_dataloader())
    assert [sampling.temperature for sampling in engine.sampling] == [0.8, 0.0]
    assert [sampling.samples_per_prompt for sampling in engine.sampling] == [1, 1]
    for evaluation, name, generated in zip((sampled, greedy), ("sampled", "greedy"), engine.generated, strict=True):
        assert evaluation.name == name
        assert list(evaluation.examples) == held_out
        assert evaluation.lengths.tolist() == generated.mask.sum(dim=-1).tolist()
        rows = [tokens_of(generated, row) for row in range(5)]
        texts = [
            module.policy.tokenizer.decode(tokens[:-1] if finished else tokens)
            for tokens, finished in zip(rows, generated.finished, strict=True)
        ]
        assert evaluation.completions == texts
        rewards = [text_reward(text, example) for text, example in zip(texts, held_out, strict=True)]
        assert evaluation.rewards.tolist() == rewards
    again = [next(iter(loader)) for loader in data.val_dataloader()]
    assert [one.completions for one in again] == [sampled.completions, greedy.completions]


def completion_length(completion, example):
    return len(completion)


def test_several_rewards_of_held_out_prompts_are_measured_one_by_one(tmp_path, model_folder):
    data = small_data(
        reward=[text_reward, completion_length],
        reward_weights=[1.0, -0.5],
        validation=AdditionProblems(300, held_out=True),
        max_completion_length=2,
    )
    trainer = quiet_trainer(tmp_path)
    module = PolicyModule(model_folder, gmpo())
    trainer.validate(module, data, verbose=False)
    metrics = module.held_out_metrics
    assert {f"val/{name}" for name in metrics} == set(trainer.callback_metrics)
    for loader in data.val_dataloader():
        pairs = [pair for one in loader for pair in zip(one.completions, one.examples, strict=True)]
        means = [sum(reward(*pair) for pair in pairs) / 300 for reward in (text_reward, completion_length)]
        expected = {
            f"rewards/text_reward_{loader.name}": means[0],
            f"rewards/completion_length_{loader.name}": means[1],
            f"reward_{loader.name}": means[0] - means[1] / 2,
        }
        assert f"pass@1_{loader.name}" not in metrics  # not every reward is 0 or 1
        for name, mean in expected.items():
            assert metrics[name] == pytest.approx(mean, abs=1e-6)
            assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(mean, abs=1e-5)


def test_one_reward_of_held_out_prompts_is_not_measured_twice(tmp_path, model_folder):
    trainer = quiet_trainer(tmp_path)
    data = small_data(validation=AdditionProblems(5, held_out=True))
    module = PolicyModule(model_folder, gmpo())
    trainer.validate(module, data, verbose=False)
    names = {f"{metric}_{generated}" for metric in ("reward", "mean_length") for generated in ("sampled", "greedy")}
    assert set(module.held_out_metrics) == names
    assert set(trainer.callback_metrics) == {f"val/{name}" for name in names}


def test_a_table_has_room_for_long_names(capsys):
    print_table({"before": {"pass@1_sampled": 0.25, "rewards/completion_length_sampled": 1.5}})
    _, title, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["pass@1_sampled", "0.250"],
        ["rewards/completion_length_sampled", "1.500"],
    ]
    assert len({len(line) for line in (title, *lines)}) == 1


def test_without_held_out_prompts_nothing_is_measured():
    assert small_data().val_dataloader() == []


def test_many_held_out_prompts_come_in_batches_generated_with_different_seeds(tmp_path, model_folder):
    engine = RecordingEngine()
    data = small_data(validation=[{"prompt": "1"}] * 300, rollouts=engine, max_completion_length=2)
    quiet_trainer(tmp_path).validate(PolicyModule(model_folder, gmpo()), data, verbose=False)
    assert [len(prompts) for prompts in engine.prompts] == [256, 44] * 2
    assert engine.sampling[0].seed != engine.sampling[1].seed
    assert [len(loader) for loader in data.val_dataloader()] == [2, 2]


@pytest.mark.parametrize("ranks", [2, 3])
def test_held_out_prompts_are_sharded_over_the_ranks(tmp_path, model_folder, monkeypatch, ranks):
    """Each prompt is completed by one rank; one without a prompt completes another, which does not count."""
    held_out, found, calls = list(AdditionProblems(ranks + 2, held_out=True)), [], []
    for rank in range(ranks):
        engine = RecordingEngine()
        data = small_data(validation=held_out, rollouts=engine)
        with monkeypatch.context() as patched:
            as_one_of(ranks, rank, patched)
            patched.setattr(tally_file, "gathered_over_ranks", lambda rows, trainer: rows)
            patched.setattr(EvaluationLoader, "_prompts_per_batch", ranks + 1)
            quiet_trainer(tmp_path).validate(PolicyModule(model_folder, gmpo()), data, verbose=False)
            evaluations = list(data.val_dataloader()[1])
        found += [example for evaluation in evaluations for example in evaluation.examples]
        assert all(len(evaluation.examples) == len(evaluation.completions) for evaluation in evaluations)
        calls.append(len(engine.prompts))
        counted = sum(evaluation.tally.sums["count of reward_greedy"] for evaluation in evaluations)
        assert counted == sum(len(evaluation.examples) for evaluation in evaluations)
    assert sorted(found, key=str) == sorted(held_out, key=str)
    assert len(set(calls)) == 1


def test_a_reward_that_raises_says_for_which_completion(tmp_path, model_folder):
    def failing(completion, example):
        raise RuntimeError("no verdict")

    with pytest.raises(RuntimeError, match="no verdict") as raised:
        fitted(tmp_path, model_folder, data=small_data(reward=failing), max_steps=1)
    (note,) = raised.value.__notes__
    assert "raised by `reward` failing for the completion" in note
    assert "'answer'" in note


class StopAfter(Callback):
    """Ends a run that has no end of its own."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_an_objective_that_follows_the_progress_needs_a_run_with_an_end(tmp_path, model_folder):
    engine, recorder = RecordingEngine(), BatchRecorder()
    data = small_data(rollouts=engine)
    with pytest.raises(ValueError, match=r"^`max_steps` is -1, so the run has no end, but .*LinearExponent.*; pass"):
        fitted(tmp_path, model_folder, holder_po(), data=data, max_steps=-1, callbacks=[StopAfter()])
    assert not engine.prompts
    callbacks = [recorder, StopAfter()]
    run = fitted(tmp_path, model_folder, pmpo(), data=data, max_steps=-1, callbacks=callbacks)
    assert run.trainer.global_step == 1
    assert recorder.batches[0].policy.totals.progress is None
