"""Layers that tensor parallelism shards or refuses; the results are tested on two processes."""

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, PhiConfig, Qwen2Config

from aggregate_po.recipes import gmpo
from lightning_modules import LoRA, PolicyModule
from lightning_modules.model.tensor_parallel import parallelize

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4}


@pytest.fixture
def mesh():
    """Device mesh of a tensor-parallel group of two ranks, with this process as rank 0; collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


def model_of(config):
    return AutoModelForCausalLM.from_config(config)


def test_layers_are_sharded_by_the_plan_of_the_architecture(mesh):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = model_of(Qwen2Config(**SIZES, **heads, tie_word_embeddings=True))
    numbers = {name: value.numel() for name, value in model.named_parameters()}
    parallelize(model, mesh["tensor_parallel"])
    placements = {name: value.placements[0] for name, value in model.named_parameters()}
    layer = "model.layers.1."
    assert placements[f"{layer}self_attn.q_proj.weight"] == placements[f"{layer}self_attn.k_proj.bias"] == Shard(0)
    assert placements[f"{layer}self_attn.o_proj.weight"] == placements[f"{layer}mlp.down_proj.weight"] == Shard(1)
    assert placements["model.embed_tokens.weight"] == placements[f"{layer}input_layernorm.weight"] == Replicate()
    assert {name: value.numel() for name, value in model.named_parameters()} == numbers
    assert all(isinstance(value, DTensor) for value in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2), "has no tensor-parallel plan of GPT2LMHeadModel"),
        (
            LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=1),
            "is 2, which does not divide the 1 `num_key_value_heads` of Llama.*pass a divisor",
        ),
        (
            LlamaConfig(**{**SIZES, "hidden_size": 15}, num_attention_heads=3, num_key_value_heads=3),
            "is 2, which does not divide the 3 `num_attention_heads` of Llama",
        ),
        (
            LlamaConfig(**{**SIZES, "intermediate_size": 31}, num_attention_heads=4, num_key_value_heads=2),
            "is 2, which does not divide the 31 `in_features` of model.layers.1.mlp.down_proj; pass a divisor",
        ),
        (
            MixtralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2),
            "shards model.layers.1.mlp.* of MixtralForCausalLM by '.*', which is not supported",
        ),
        (
            PhiConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, qk_layernorm=True),
            "shards model.layers.1.self_attn.._layernorm of PhiForCausalLM by None, which is not supported",
        ),
    ],
    ids=["no plan", "key-value heads", "heads", "columns", "experts", "beside sharded layers"],
)
def test_what_cannot_be_sharded_is_refused(config, message, mesh):
    with pytest.raises(ValueError, match=f"`tensor_parallel_size` .*{message}"):
        parallelize(model_of(config), mesh["tensor_parallel"])


def test_adapters_are_refused_before_anything_is_loaded(mesh, model_folder):
    module = PolicyModule(model_folder, gmpo(), lora=LoRA(4))
    module._device_mesh = mesh
    with pytest.raises(ValueError, match=r"`lora` is LoRA.*`tensor_parallel_size` is 2; pass tensor_parallel_size=1"):
        module.configure_model()
    assert not module.policy.is_loaded
