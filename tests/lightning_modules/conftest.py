"""One tiny model for all tests; nothing is trained before them."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.addition.warm_start import make_model, make_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model of hidden size 32; one token in eight ends a completion."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(tokenizer, hidden_size=32, layers=2)
        for layer in model.model.layers:  # attention that looks at some tokens more than at others
            layer.self_attn.q_proj.weight.data *= 5
            layer.self_attn.k_proj.weight.data *= 5
    model.model.norm.weight.data.fill_(4.0)  # a distribution that is far from uniform
    model.generation_config.eos_token_id = list(range(1, len(tokenizer), 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def tokenizer(model_folder):
    return AutoTokenizer.from_pretrained(model_folder)
