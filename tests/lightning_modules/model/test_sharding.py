"""Weights that are sharded together or refused; the results are tested on two processes."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config

from lightning_modules.model.sharding import gathered, is_sharded, shard

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=40, num_hidden_layers=3, **SIZES),
    "qwen2, tied": Qwen2Config(vocab_size=40, num_hidden_layers=3, tie_word_embeddings=True, **SIZES),
    "gemma": GemmaConfig(vocab_size=40, num_hidden_layers=3, **SIZES),
    "gpt2": GPT2Config(vocab_size=40, n_layer=3, n_embd=16, n_head=2),
}


@pytest.fixture
def two_ranks():
    """A process group in which this process is the first of two, and collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def mesh():
    return init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_block_and_the_rest_of_any_architecture(name, two_ranks):
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    numbers = {key: value.numel() for key, value in model.named_parameters()}
    shard(model, mesh())
    assert is_sharded(model)
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) == 3 + 1
    assert {key: value.numel() for key, value in model.named_parameters()} == numbers
    assert all(isinstance(value, DTensor) for value in model.parameters())
    assert sum(value.to_local().numel() for value in model.parameters()) <= 0.6 * sum(numbers.values())


@pytest.mark.parametrize("gathered_dtype", [None, torch.bfloat16])
def test_weights_are_kept_in_float32_and_gathered_as_asked(gathered_dtype, two_ranks):
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    shard(model, mesh(), gathered_dtype)
    with gathered(model):
        assert {value.dtype for value in model.parameters()} == {gathered_dtype or torch.float32}
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_model_in_one_part_is_left_alone(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    with gathered(model):
        assert not is_sharded(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
