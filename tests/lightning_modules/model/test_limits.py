"""Limits of models, against what their forward pass takes."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules.model.limits import limits_of, padding_token_required
from lightning_modules.model.policy import Policy

SMALL = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
HIDDEN = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, **SMALL}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 24, **SMALL}
ROTARY = {**HIDDEN, "num_key_value_heads": 4, "max_position_embeddings": 24}
TABLES = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "n_ctx": 24, "rotary_dim": 4},
    "ctrl": {**GPT, "dff": 64},
    "opt": {**HIDDEN, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 24},
    "biogpt": {**HIDDEN, "max_position_embeddings": 24},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 4,
        "attention_types": [[["global"], 1]],
        "max_position_embeddings": 24,
        **SMALL,
    },
    "mpt": {"d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 24, **SMALL},
}
COMPUTED = {
    "llama": ROTARY,
    "qwen2": ROTARY,
    "gpt_neox": {**HIDDEN, "max_position_embeddings": 24},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4, **SMALL},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1, **SMALL},
}


def model(kind, **options):
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()


@torch.no_grad()
def passes(network, length):
    network(input_ids=torch.full((1, length), 3), use_cache=False)


@pytest.mark.parametrize("kind", TABLES)
def test_a_model_with_a_table_of_positions_computes_as_much_as_it_holds(kind):
    network = model(kind, **TABLES[kind])
    limits = limits_of(network)
    assert (limits.vocabulary_size, limits.max_length, limits.trained_length) == (64, 24, None)
    passes(network, 24)
    with pytest.raises((IndexError, RuntimeError)):
        passes(network, 25)


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_model_that_computes_positions_has_a_declared_length_at_most(kind):
    network = model(kind, **COMPUTED[kind])
    limits = limits_of(network)
    declared = COMPUTED[kind].get("max_position_embeddings")
    assert (limits.vocabulary_size, limits.max_length, limits.trained_length) == (64, None, declared)
    passes(network, 25)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}, 96),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 3}, 24),
        ({"rope_type": "linear", "factor": 2.0}, 48),
        ({"rope_type": "default"}, 24),
    ],
)
def test_scaled_positions_lengthen_what_is_declared(scaling, expected):
    scaling = {**scaling, "rope_theta": 10_000.0}
    if scaling["rope_type"] == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert limits_of(model("llama", **ROTARY, rope_parameters=scaling)).trained_length == expected


def test_resized_embeddings_count():
    network = model("qwen2", **ROTARY)
    network.resize_token_embeddings(80)
    assert limits_of(network).vocabulary_size == 80


def test_a_padding_token_that_the_model_lacks_is_named(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": config["vocab_size"]}))
    with pytest.raises(
        ValueError, match=r"`model_name` is '.*model', whose `pad_token_id` in config\.json is no token"
    ):
        Policy(str(folder)).load()
    with pytest.raises(AssertionError, match="another"), padding_token_required("a model"):
        raise AssertionError("another")
