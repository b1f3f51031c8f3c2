"""Refinement of drafts: which draft a prompt gets, how it is put into the prompt, and what is counted."""

import itertools
import math

import pytest
import torch

from lightning_modules.data.schemes import DraftRefinement, DynamicSampling
from lightning_modules.data.schemes.drafts import _chosen, _filled
from tests.lightning_modules.data.test_failed_verdicts import SIGNAL, by_call
from tests.lightning_modules.training import BatchRecorder, RecordingEngine, fitted, small_data, text_reward

TEMPLATE = "{draft} {question}"


def iterative_data(engine, scheme=DraftRefinement(drafts=3, template=TEMPLATE), **options):
    return small_data(**{"rollouts": engine, "schemes": [scheme], **options})


@pytest.mark.parametrize(("choice", "expected"), [("best", {1, 2}), ("worst", {0, 3}), ("random", {0, 1, 2, 3})])
def test_a_draft_is_chosen_by_its_reward_and_at_random_among_equal_ones(choice, expected):
    rewards = torch.tensor([[0.0, 2.0, 2.0, 0.0]]).expand(4000, 4)
    scored = torch.tensor([True, True, True, True]).expand(4000, 4)
    chosen = _chosen(rewards, scored, choice, torch.Generator().manual_seed(0))
    counts = torch.bincount(chosen, minlength=4)
    assert {number for number in range(4) if counts[number]} == expected
    assert all(abs(counts[number] / 4000 - 1 / len(expected)) < 0.05 for number in expected)
    assert torch.equal(chosen, _chosen(rewards, scored, choice, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("choice", ["best", "worst", "random"])
def test_a_draft_without_a_reward_is_the_last_choice(choice):
    rewards, scored = (
        torch.tensor([[9.0, 1.0, -9.0], [2.0, 2.0, 2.0]]),
        torch.tensor([[False, True, False], [False] * 3]),
    )
    chosen = {tuple(_chosen(rewards, scored, choice, torch.Generator().manual_seed(n)).tolist()) for n in range(50)}
    assert chosen == {(1, 0), (1, 1), (1, 2)}


@pytest.mark.parametrize(
    ("choice", "closed_form"),
    [("best", lambda rate: 1 - (1 - rate) ** 4), ("worst", lambda rate: rate**4), ("random", lambda rate: rate)],
)
def test_expected_reward_of_the_chosen_draft(choice, closed_form):
    """Over all patterns of four right and wrong drafts; "random" is an average over many choices."""
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.double)
    repeated = patterns.repeat_interleave(2000, dim=0)
    chosen = _chosen(repeated, torch.ones_like(repeated, dtype=torch.bool), choice, torch.Generator().manual_seed(1))
    rewards = repeated.gather(-1, chosen.unsqueeze(-1)).view(16, 2000).mean(dim=-1)
    for rate in (0.1, 0.5, 0.8):
        weights = torch.tensor([math.prod(rate if right else 1 - rate for right in row) for row in patterns.tolist()])
        assert float(weights @ rewards.float()) == pytest.approx(closed_form(rate), abs=5e-3)


def test_a_template_is_filled_in_once():
    assert _filled("{question}|{draft}|{question}", "{draft}", r"\frac{1}{2} {question}") == (
        r"{draft}|\frac{1}{2} {question}|{draft}"
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    filled = _filled("{draft}, {question}", messages, "3")
    assert filled == [messages[0], {"role": "user", "content": "3, 1 + 1?"}]
    assert messages[1]["content"] == "1 + 1?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drafts": 0}, "`drafts` is 0; pass 1 or more"),
        ({"choice": "median"}, "`choice` is 'median'; pass one of best, worst, random"),
        ({"template": "{question}"}, r"`template` is '\{question\}', which has no \{draft\}; put \{draft\} into it"),
        ({"template": "{draft}"}, r"which has no \{question\}"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DraftRefinement(**arguments)


# In a training


def texts_of(completions, tokenizer):
    """Texts as rewards see them."""
    ends = set(range(1, len(tokenizer), 8))
    rows = [ids[mask].tolist() for ids, mask in zip(completions.token_ids, completions.mask, strict=True)]
    return [tokenizer.decode(row[:-1] if row[-1] in ends else row) for row in rows]


def test_the_policy_is_trained_on_prompts_with_their_best_draft(tmp_path, model_folder):
    engine, recorder = RecordingEngine(), BatchRecorder()
    data = iterative_data(engine, validation=[{"prompt": "1 + 1"}])
    run = fitted(tmp_path, model_folder, data=data, callbacks=[recorder])
    tokenizer = run.module.policy.tokenizer
    texts = [[tokenizer.decode(prompt) for prompt in prompts] for prompts in engine.prompts]
    *before, first, second, sampled, greedy = texts
    assert [sampling.samples_per_prompt for sampling in engine.sampling] == [1, 1, 3, 4, 1, 1]
    drafts = texts_of(engine.generated[2], tokenizer)
    rewards = [[text_reward(draft, {"prompt": p}) for draft in drafts[3 * n : 3 * n + 3]] for n, p in enumerate(first)]
    for number, (prompt, longer) in enumerate(zip(first, second, strict=True)):
        assert longer.endswith(f" {prompt}")
        draft = longer.removesuffix(f" {prompt}")
        best = [drafts[3 * number + n] for n in range(3) if rewards[number][n] == max(rewards[number])]
        assert draft in best
    metrics = recorder.metrics[0]
    assert metrics["drafts/reward"] == pytest.approx(sum(map(sum, rewards)) / 12)
    assert metrics["drafts/best"] == metrics["drafts/chosen"] == pytest.approx(sum(map(max, rewards)) / 4)
    assert metrics["drafts/left_out"] == 0
    # The update runs on the second stage alone.
    rows = [row for batch in recorder.batches for row in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    assert {tokenizer.decode(ids[mask]) for ids, mask in rows} <= set(second)
    assert all(batch.policy.totals.completions == 16 for batch in recorder.batches)
    # Held-out prompts have no draft.
    assert [*before, sampled, greedy] == [["1 + 1"]] * 4


def test_a_prompt_that_would_be_too_long_goes_without_its_draft(tmp_path, model_folder):
    engine, recorder = RecordingEngine(), BatchRecorder()
    engine.max_model_length = 100
    scheme = DraftRefinement(drafts=2, template="so long " * 100 + TEMPLATE)
    fitted(tmp_path, model_folder, data=iterative_data(engine, scheme), callbacks=[recorder])
    assert engine.prompts[0] == engine.prompts[1]
    assert recorder.metrics[0]["drafts/left_out"] == 1


class LimitedWhenLoaded(RecordingEngine):
    """Learns its limit from its servers, as an engine of vLLM servers does."""

    def load_policy(self, model):
        super().load_policy(model)
        self.max_model_length = 100


def test_a_prompt_that_would_be_too_long_for_servers_goes_without_its_draft(tmp_path, model_folder):
    engine, recorder = LimitedWhenLoaded(), BatchRecorder()
    scheme = DraftRefinement(drafts=2, template="so long " * 100 + TEMPLATE)
    fitted(tmp_path, model_folder, data=iterative_data(engine, scheme), callbacks=[recorder])
    assert engine.prompts[0] == engine.prompts[1]
    assert recorder.metrics[0]["drafts/left_out"] == 1


class ElsewhereEngine(RecordingEngine):
    concurrent = True


@pytest.mark.filterwarnings("error:completions that were sampled ahead were not used")
def test_drafts_can_be_sampled_ahead(tmp_path, model_folder):
    engine = ElsewhereEngine()
    fitted(tmp_path, model_folder, data=iterative_data(engine, overlap=True), max_steps=3)
    assert [sampling.samples_per_prompt for sampling in engine.sampling] == [3, 4] * 3


def test_metrics_are_those_of_the_drafts_of_all_rounds(tmp_path, model_folder):
    rounds = [1.0, 0.0], [*[1.0] * 4, *SIGNAL], [0.25], SIGNAL
    schemes = [DraftRefinement(drafts=1, template=TEMPLATE), DynamicSampling()]
    (metrics,) = by_call(tmp_path, model_folder, *rounds, schemes=schemes)
    assert (metrics["groups/rounds"], metrics["drafts/reward"]) == (2, 1.25 / 3)


def test_groups_without_signal_are_replaced_around_and_within(tmp_path, model_folder):
    """Dynamic sampling of the refinements, and of the drafts."""
    scheme = DraftRefinement(drafts=3, template=TEMPLATE)
    for schemes in ([scheme, DynamicSampling()], [DynamicSampling(), scheme]):
        engine, recorder = RecordingEngine(), BatchRecorder()
        data = iterative_data(engine, schemes=schemes)
        fitted(tmp_path, model_folder, data=data, callbacks=[recorder])
        sizes = [sampling.samples_per_prompt for sampling in engine.sampling]
        assert set(sizes) == {3, 4}
        assert sizes[0] == 3
        assert {"groups/rounds", "drafts/best"} <= recorder.metrics[0].keys()
        assert sum(len(batch.completion_ids) for batch in recorder.batches) <= 16
