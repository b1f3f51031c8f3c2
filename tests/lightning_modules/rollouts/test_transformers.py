"""The engine against the model itself: its probabilities, its greedy choices, its stops."""

import copy

import pytest
import torch

from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from tests.lightning_modules.training import plain_log_prob_matrix, plain_logits, tokens_of

QUESTIONS = ["What is 12 + 345?", "2", "What is 9 + 8? What is 7?", "boxed 47", "What is 472 + 96?"]
STOPS = tuple(range(1, 271, 5))


@pytest.fixture
def prompts(tokenizer):
    prompts = [tokenizer.encode(text) for text in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) > 3
    return prompts


def drawn_by(model, prompts, max_sequences=256, **sampling):
    return drawn_from(loaded(model, max_sequences), prompts, **sampling)


def loaded(model, max_sequences=256):
    """An engine that has tried the model out."""
    engine = TransformersEngine(max_sequences)
    engine.load_policy(model)
    return engine


def drawn_from(engine, prompts, **sampling):
    defaults = {"max_completion_length": 12, "stop_token_ids": STOPS}
    return engine.generate(prompts, SamplingParameters(**{**defaults, **sampling}))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_full_forward_pass(model, prompts, temperature):
    drawn = drawn_by(model, prompts, temperature=temperature, samples_per_prompt=4, seed=3)
    assert len(drawn.token_ids) == 4 * len(prompts)
    lengths = drawn.mask.sum(dim=-1)
    assert len(lengths.unique()) > 3  # rows left the batch at different times
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, prompts, drawn, temperature)
    assert (drawn.log_probs - expected)[drawn.mask].abs().max() < 1e-5


def test_greedy_completions_are_those_of_the_library(model, prompts):
    drawn = drawn_by(model, prompts, temperature=0.0, samples_per_prompt=2)
    for row in range(len(drawn.token_ids)):
        prompt = torch.tensor([prompts[row // 2]])
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(STOPS),
            pad_token_id=0,
        )
        assert tokens_of(drawn, row) == output[0, prompt.shape[1] :].tolist()


def test_completions_of_one_prompt_stand_next_to_each_other(model, tokenizer):
    """The two prompts have different likeliest tokens; of each, the engine draws three."""
    prompts = [tokenizer.encode("What is 12 + 345?"), tokenizer.encode("boxed")]
    likeliest = [int(model(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in prompts]
    assert likeliest[0] != likeliest[1]
    drawn = drawn_by(model, prompts, temperature=0.0, samples_per_prompt=3, max_completion_length=1)
    assert drawn.token_ids[:, 0].tolist() == [likeliest[0]] * 3 + [likeliest[1]] * 3


def test_the_seed_decides_the_draw(model, prompts):
    first, again, other = (drawn_by(model, prompts, seed=seed, samples_per_prompt=4) for seed in (5, 5, 6))
    for name in ("token_ids", "mask", "log_probs", "finished"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.token_ids[:, 0].tolist() != other.token_ids[:, 0].tolist()
    assert len(set(first.token_ids[:4, 0].tolist())) > 1  # completions of one prompt differ too


def test_the_draw_leaves_the_global_random_state_alone(model, prompts):
    before = torch.get_rng_state()
    drawn_by(model, prompts)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stop_token_is_the_last_of_a_finished_completion(model, prompts):
    drawn = drawn_by(model, prompts, samples_per_prompt=8, max_completion_length=4)
    assert 0 < drawn.finished.sum() < len(drawn.finished)
    for row, finished in enumerate(drawn.finished.tolist()):
        tokens = tokens_of(drawn, row)
        assert drawn.mask[row].tolist() == [time < len(tokens) for time in range(4)]
        assert not set(tokens[:-1]) & set(STOPS)
        assert (tokens[-1] in STOPS) == finished
        assert finished or len(tokens) == 4


def test_a_stop_on_the_last_place_counts_as_finished(model, prompts):
    everything = tuple(range(model.config.vocab_size))
    assert drawn_by(model, prompts, max_completion_length=1, stop_token_ids=everything).finished.all()
    assert not drawn_by(model, prompts, max_completion_length=1, stop_token_ids=()).finished.any()


def test_without_a_stop_every_completion_is_cut_off_at_full_length(model, prompts):
    drawn = drawn_by(model, prompts, stop_token_ids=())
    assert drawn.mask.shape == (len(prompts), 12)
    assert drawn.mask.all()
    assert not drawn.finished.any()


def test_padding_is_zero_and_no_wider_than_the_longest_completion(model, prompts):
    drawn = drawn_by(model, prompts, samples_per_prompt=4, max_completion_length=40, max_sequences=8)
    assert drawn.mask.shape[1] == drawn.mask.sum(dim=-1).max() < 40
    assert drawn.token_ids[~drawn.mask].eq(0).all()
    assert drawn.log_probs[~drawn.mask].eq(0).all()


@pytest.mark.parametrize("max_sequences", [1, 2, 4, 7])
def test_greedy_completions_do_not_depend_on_what_is_drawn_beside_them(model, prompts, max_sequences):
    together = drawn_by(model, prompts, temperature=0.0, samples_per_prompt=2)
    apart = drawn_by(model, prompts, temperature=0.0, samples_per_prompt=2, max_sequences=max_sequences)
    assert torch.equal(together.token_ids, apart.token_ids)
    assert torch.equal(together.mask, apart.mask)
    assert torch.equal(together.finished, apart.finished)
    assert torch.allclose(together.log_probs, apart.log_probs, atol=1e-5, rtol=0)


def batch_sizes_of(model):
    """A list that grows by the batch size of each forward pass to come."""
    sizes = []
    forward = model.forward

    def counted(*args, input_ids, **options):
        sizes.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **options)

    model.forward = counted
    return sizes


@pytest.mark.parametrize("max_sequences", [1, 6, 256])
def test_no_more_completions_are_drawn_at_a_time_than_allowed(model, prompts, max_sequences):
    engine = loaded(model, max_sequences)
    sizes = batch_sizes_of(model)
    drawn_from(engine, prompts, samples_per_prompt=2, stop_token_ids=())
    at_once = max(max_sequences // 2, 1)
    assert max(sizes) == min(2 * at_once, 2 * len(prompts))
    assert sizes[0] == min(at_once, len(prompts))  # each prompt is read once, not once per completion


def test_completions_that_ended_leave_the_batch(model, prompts):
    engine = loaded(model)
    sizes = batch_sizes_of(model)
    drawn = drawn_from(engine, prompts, samples_per_prompt=4)
    lengths = drawn.mask.sum(dim=-1)
    # One pass over the prompts, then one for each token after the first.
    assert sizes == [len(prompts)] + [int((lengths > time).sum()) for time in range(1, int(lengths.max()))]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_come_as_often_as_the_model_says(model, prompts, temperature):
    """A chi-square test on 6000 draws, for each of two prompts that are drawn together."""
    drawn = drawn_by(model, prompts[:2], temperature=temperature, samples_per_prompt=6000, max_completion_length=1)
    for number, prompt in enumerate(prompts[:2]):
        with torch.no_grad():
            probabilities = torch.softmax(plain_logits(model, prompt, [0], temperature)[0], dim=-1)
        counts = torch.bincount(drawn.token_ids[6000 * number : 6000 * (number + 1), 0], minlength=len(probabilities))
        expected = 6000 * probabilities
        common = expected >= 5
        observed = torch.cat([counts[common], counts[~common].sum().unsqueeze(0)]).double()
        expected = torch.cat([expected[common], expected[~common].sum().unsqueeze(0)])
        statistic = ((observed - expected).square() / expected).sum()
        freedom = len(expected) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
        assert expected.max() > 3 * expected.mean()  # a uniform draw would not pass


@pytest.mark.parametrize("training", [True, False])
def test_drawing_is_done_in_eval_mode_and_the_mode_restored(model, prompts, training):
    expected = drawn_by(model, prompts, temperature=0.0)
    dropped = copy.deepcopy(model)
    for layer in dropped.model.layers:
        layer.self_attn.attention_dropout = 0.9
    dropped.train(training)
    assert torch.equal(drawn_by(dropped, prompts, temperature=0.0).token_ids, expected.token_ids)
    assert dropped.training == training
    with pytest.raises(IndexError):
        drawn_by(dropped, [[100_000]])
    assert dropped.training == training


def test_drawing_makes_no_graph(model, prompts):
    assert not drawn_by(model, prompts).log_probs.requires_grad


def test_the_policy_is_drawn_from_as_it_is_now(model, prompts):
    engine = TransformersEngine()
    engine.load_policy(model)
    sampling = SamplingParameters(max_completion_length=3, stop_token_ids=(), temperature=0.0)
    before = engine.generate(prompts, sampling).log_probs
    model.model.norm.weight.data *= 2
    drawn = engine.generate(prompts, sampling)
    assert (drawn.log_probs - before).abs().max() > 0.1
    assert (drawn.log_probs - plain_log_prob_matrix(model, prompts, drawn)).abs().max() < 1e-5


def test_without_a_policy_it_says_so():
    with pytest.raises(RuntimeError, match=r"no policy; call `load_policy\(model\)` before `generate`"):
        TransformersEngine().generate([[1]], SamplingParameters(max_completion_length=1, stop_token_ids=()))


@pytest.mark.parametrize("max_sequences", [0, -4])
def test_max_sequences_must_be_positive(max_sequences):
    with pytest.raises(ValueError, match=rf"`max_sequences` is {max_sequences}; pass 1 or more completions"):
        TransformersEngine(max_sequences)
