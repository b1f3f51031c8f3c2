"""The nucleus of a distribution, by hand and by its definition, and sampling from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from lightning_modules.rollouts.decoding import nucleus, sampled
from tests.lightning_modules.training import plain_log_probs, plain_logits

PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05], dtype=torch.double)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, {1: 1.0}),
        (0.5, {1: 1.0}),  # 0.5 is enough
        (0.51, {1: 0.5 / 0.8, 3: 0.3 / 0.8}),
        (0.8, {1: 0.5 / 0.8, 3: 0.3 / 0.8}),
        (0.85, {1: 0.5 / 0.9, 3: 0.3 / 0.9, 0: 0.1 / 0.9}),
        (0.92, {1: 0.5 / 0.95, 3: 0.3 / 0.95, 0: 0.1 / 0.95, 2: 0.05 / 0.95}),  # the first of two that are equal
    ],
)
def test_the_nucleus_by_hand(top_p, kept):
    found = nucleus(PROBABILITIES.log().unsqueeze(0), top_p).exp()[0]
    assert found.tolist() == pytest.approx([kept.get(token, 0.0) for token in range(5)], abs=1e-12)


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_of_enough_probability(logits, top_p):
    before = torch.log_softmax(torch.tensor([logits], dtype=torch.double), dim=-1)
    after = nucleus(before, top_p)
    kept = torch.isfinite(after)
    chosen = before[kept].exp()
    assert after.exp().sum() == pytest.approx(1.0)
    assert chosen.sum() >= top_p - 1e-9
    assert chosen.sum() - chosen.min() < top_p + 1e-9  # without the least likely of them it is too little
    if not kept.all():
        assert before[~kept].max() <= before[kept].min()


def test_tokens_come_from_the_nucleus_as_often_as_they_should(model, tokenizer):
    """A chi-square test on 4000 samples; the temperature is applied before the nucleus is taken."""
    engine, prompt = TransformersEngine(), tokenizer.encode("What is 12 + 345?")
    engine.load_policy(model)
    sampling = SamplingParameters(1, (), temperature=0.7, seed=3, samples_per_prompt=4000, top_p=0.6)
    sampled = engine.generate([prompt], sampling)
    with torch.no_grad():
        ordered = torch.softmax(plain_logits(model, prompt, [0], 0.7)[0], dim=-1).sort(descending=True)
    total, size = 0.0, 0
    while total < 0.6:
        total, size = total + float(ordered.values[size]), size + 1
    assert 2 < size < 100
    tokens = ordered.indices[:size].tolist()
    counts = torch.bincount(sampled.token_ids[:, 0], minlength=len(ordered.values))
    assert int(counts[tokens].sum()) == 4000
    expected = 4000 * ordered.values[:size] / total
    statistic = float(((counts[tokens] - expected).square() / expected).sum())
    assert statistic < (size - 1) + 4 * (2 * (size - 1)) ** 0.5
    known = plain_log_probs(model, prompt, [tokens[0]], 0.7)[0].item() - math.log(total)
    assert sampled.log_probs[sampled.token_ids == tokens[0]].tolist()[0] == pytest.approx(known, abs=1e-5)


def test_greedy_decoding_has_no_nucleus(model, tokenizer):
    engine, prompt = TransformersEngine(), tokenizer.encode("What is 12 + 345?")
    engine.load_policy(model)
    plain, narrow = (
        engine.generate([prompt], SamplingParameters(6, (), temperature=0.0, top_p=top_p)) for top_p in (1.0, 0.1)
    )
    assert torch.equal(plain.token_ids, narrow.token_ids)
    assert torch.equal(plain.log_probs, narrow.log_probs)


def generator():
    return torch.Generator().manual_seed(0)


def test_tokens_are_sampled_as_often_as_their_probabilities_say():
    """A chi-square test, 4 degrees of freedom; tokens of probability 0 lie before, between and after the others."""
    probabilities = torch.tensor([0.0, 0.5, 0.05, 0.0, 0.3, 0.05, 0.1, 0.0])
    count = 40_000
    counts = torch.bincount(sampled(probabilities.log().expand(count, -1), generator()), minlength=8)
    assert counts[probabilities == 0].tolist() == [0, 0, 0]
    expected = count * probabilities[probabilities > 0]
    assert float(((counts[probabilities > 0] - expected).square() / expected).sum()) < 18.5  # quantile 0.999


def test_rare_tokens_after_a_likely_one_keep_their_place(monkeypatch):
    """Tokens of 3e-8 each follow one of 0.995, where sums in float32 are 6e-8 apart."""
    log_probs = torch.full((150_001,), 0.005 / 150_000).log()
    log_probs[0] = math.log(0.995)
    likely, rare = (float(log_prob.exp()) for log_prob in log_probs[:2])
    tokens = torch.arange(1, 150_001, 7919)
    places = (likely + (tokens.double() - 0.5) * rare) / (likely + 150_000 * rare)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: places.view(size))
    assert sampled(log_probs.expand(len(tokens), -1), generator()).tolist() == tokens.tolist()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_random_numbers_sample_tokens_of_some_probability(monkeypatch, uniform):
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, uniform, dtype=torch.double))
    probabilities = torch.tensor([[0.0, 0.7, 0.3, 0.0], [0.0, 1.0, 0.0, 0.0]])
    expected = [1, 1] if uniform == 0 else [2, 1]
    assert sampled(probabilities.log(), generator()).tolist() == expected


def test_logits_that_are_not_finite_are_an_error():
    log_probs = torch.log_softmax(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), dim=-1)
    with pytest.raises(FloatingPointError, match="not finite, so no token can be sampled"):
        sampled(log_probs, generator())
