"""Sampling parameters of vLLM, for both engines."""

import pytest

from lightning_modules.rollouts import SamplingParameters
from lightning_modules.rollouts.vllm_sampling import copies, require_temperature, vllm_sampling

SAMPLING = SamplingParameters(5, (7, 9), temperature=0.5, samples_per_prompt=3, top_p=0.9)


def test_everything_that_changes_a_distribution_is_said():
    assert vllm_sampling(SAMPLING, 2**62 + 4) == {
        "n": 3,
        "temperature": 0.5,
        "seed": 4,  # completion i has the seed plus i, within 64 bits
        "max_tokens": 5,
        "stop_token_ids": [7, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    assert copies(SAMPLING) == 1


def test_the_most_likely_completion_is_asked_for_once():
    greedy = SamplingParameters(5, (7,), temperature=0.0, samples_per_prompt=3, top_p=0.9)
    asked = vllm_sampling(greedy, 4)
    assert (asked["n"], asked["temperature"], asked["seed"], asked["top_p"]) == (1, 0.0, None, 1.0)
    assert copies(greedy) == 3


def test_a_temperature_that_vllm_would_raise_is_refused():
    for temperature in (0.0, 0.01, 1.0):
        require_temperature(temperature)
    with pytest.raises(ValueError, match=r"`temperature` is 0\.009, which vLLM would raise to 0\.01; pass 0 "):
        require_temperature(0.009)


def test_vllm_takes_these_parameters_as_they_are():
    vllm = pytest.importorskip("vllm")
    for temperature in (1.0, 0.01, 0.0):
        asked = vllm_sampling(SamplingParameters(5, (7,), temperature=temperature, top_p=0.95), 4)
        taken = vllm.SamplingParams(**asked)
        assert {name: getattr(taken, name) for name in asked} == asked
    assert vllm.SamplingParams(temperature=0.009).temperature == 0.01
