"""Positions that transformers scales by the longest row of a call: the neighbors of a row change nothing."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_modules.batch import Sequences, left_padded
from lightning_modules.model.layouts import PackedGroups, PackedSequences, PaddedSequences, SharedPrompts
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.rope import depends_on_length, fix_rope
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from tests.lightning_modules.architectures import small_model
from tests.lightning_modules.training import plain_log_prob_matrix

ORIGINAL = 16  # tokens before the positions are scaled
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": ORIGINAL,
    "factor": 8.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "phi3, longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": ORIGINAL}),
    "llama, longrope": ("llama", {"rope_parameters": LONG}),
    "phimoe, longrope": ("phimoe", {"rope_parameters": {**LONG, "short_mscale": 1.2, "long_mscale": 1.5}}),
    "llama, dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "qwen2, dynamic": ("qwen2", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "gemma3, one kind of layer": (
        "gemma3_text",
        {
            "rope_parameters": {"sliding_attention": PLAIN, "full_attention": DYNAMIC},
            "max_position_embeddings": ORIGINAL,
            **WINDOW,
        },
    ),
}
SHORT_ROW = list(range(70, 80)), [81, 82, 83, 84]
LONG_ROW = list(range(90, 106)), list(range(110, 120))


def scaled(name):
    kind, options = MODELS[name]
    return small_model(kind, **options)


def sequences(rows):
    prompt_ids, prompt_mask = left_padded([prompt for prompt, _ in rows])
    width = max(len(completion) for _, completion in rows)
    ids = torch.tensor([completion + [0] * (width - len(completion)) for _, completion in rows])
    lengths = torch.tensor([len(completion) for _, completion in rows]).unsqueeze(-1)
    return Sequences(prompt_ids, prompt_mask, torch.arange(len(rows)), ids, torch.arange(width) < lengths)


def log_probs(model, rows, layout):
    with torch.no_grad():
        return log_probs_and_entropy(model, sequences(rows), layout)[0]


@pytest.mark.parametrize("longest", [None, 26, ORIGINAL])
@pytest.mark.parametrize("layout", [PackedGroups(), SharedPrompts(), PaddedSequences(), PackedSequences()])
@pytest.mark.parametrize("name", MODELS)
def test_a_long_neighbor_changes_nothing(name, layout, longest):
    model = scaled(name)
    assert depends_on_length(model)
    if longest is not None:
        fix_rope(model, longest)
    alone = log_probs(model, [SHORT_ROW], layout)
    if longest == ORIGINAL:
        with pytest.raises(ValueError, match="but the rotary factors of the model were fixed for 16; lower"):
            log_probs(model, [SHORT_ROW, LONG_ROW], layout)
    else:
        beside = log_probs(model, [SHORT_ROW, LONG_ROW], layout)
        assert (alone[0] - beside[0, :4]).abs().max() < 1e-4
    assert (alone - log_probs(model, [SHORT_ROW, SHORT_ROW], layout)[:1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_is_sampled_across_the_limit_has_the_log_probs_of_training(name):
    model, engine = scaled(name), TransformersEngine()
    engine.load_policy(model)
    prompts = [LONG_ROW[0][:12], SHORT_ROW[0][:5]]
    generated = engine.generate(prompts, SamplingParameters(12, (1,), samples_per_prompt=4))
    assert int(generated.mask.sum(dim=-1).max()) + 12 > ORIGINAL
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, prompts, generated)
    assert (generated.log_probs - expected)[generated.mask].abs().max() < 1e-4


def rotated(model, positions):
    """Cosines of the first frequencies at some positions."""
    return model.model.rotary_emb(torch.zeros(1, 1, 32), torch.tensor([positions]))[0][0, :, :4]


@pytest.mark.parametrize(("longest", "factors"), [(10, "short_factor"), (16, "short_factor"), (17, "long_factor")])
def test_longrope_takes_the_factors_of_the_longest_row_of_the_run(longest, factors):
    model = scaled("llama, longrope")
    fix_rope(model, longest)
    frequencies = [10_000 ** -(index / 4) / LONG[factors][index] for index in range(4)]
    scale = math.sqrt(1 + math.log(8) / math.log(ORIGINAL))
    expected = torch.tensor([[scale * math.cos(place * f) for f in frequencies] for place in (0, 3, 9)])
    assert_close(rotated(model, [0, 3, 9]), expected)


@pytest.mark.parametrize(("longest", "base"), [(10, 1e4), (16, 1e4), (32, 1e4 * (4 * 32 / 16 - 3) ** (8 / 6))])
def test_dynamic_scaling_takes_the_base_of_the_longest_row_of_the_run(longest, base):
    model = scaled("llama, dynamic")
    fix_rope(model, longest)
    expected = torch.tensor([[math.cos(place * base ** -(index / 4)) for index in range(4)] for place in (0, 3, 9)])
    assert_close(rotated(model, [0, 3, 9]), expected)


def test_the_first_length_counts():
    model = scaled("llama, longrope")
    fix_rope(model, 10)
    before = rotated(model, [0, 3])
    fix_rope(model, 100)
    assert torch.equal(rotated(model, [0, 3]), before)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mamba"])
def test_other_models_are_left_alone(kind):
    model = small_model(kind)
    modules = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert not depends_on_length(model)
    fix_rope(model, 100)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == modules
