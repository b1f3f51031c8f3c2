"""Tensor-parallel models and broadcasts on two ranks; a program, started by the tests."""

import copy
import json
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from lightning_modules.distributed import broadcast_in_tensor_parallel_group
from lightning_modules.model.sharding import full_tensor, shard
from lightning_modules.model.tensor_parallel import parallelize
from lightning_modules.rollouts import SamplingParameters, TransformersEngine

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "phi3": Phi3Config(**SIZES),
}


def gradients(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the logits of two sequences, and the full gradients of a function of them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (2, 7), generator=generator)
    logits = model(input_ids=ids).logits
    (logits * torch.randn(logits.shape, generator=generator, dtype=torch.double)).sum().backward()
    return logits.detach(), {name: full_tensor(value.grad) for name, value in model.named_parameters()}


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too
        parallel = copy.deepcopy(model)
        parallelize(parallel, mesh["tensor_parallel"])
        shard(parallel, mesh)
        (logits, grads), (our_logits, our_grads) = gradients(model), gradients(parallel)
        assert grads.keys() == our_grads.keys()
        apart = [(logits - our_logits).abs().max(), *((grads[key] - our_grads[key]).abs().max() for key in grads)]
        local, numbers = (
            sum(value.numel() for value in values)
            for values in ([value.to_local() for value in parallel.parameters()], model.parameters())
        )
        size = max(value.abs().max().item() for value in grads.values())
        found[name] = {"apart": max(apart).item() / size, "share": local / numbers}
    # A rank whose logits differ, as they may by rounding, must generate what rank 0 does.
    with torch.no_grad():
        for parameter in parallel.parameters():
            parameter.to_local().mul_(1 + 0.2 * dist.get_rank())
    engine = TransformersEngine()
    engine.load_policy(parallel)
    generated = engine.generate([[3, 4], [5]], SamplingParameters(9, stop_token_ids=(1, 7, 8), samples_per_prompt=3))
    one_share = {"num_replicas": 1, "rank": 0}
    trainer = SimpleNamespace(
        world_size=2, distributed_sampler_kwargs=one_share, strategy=SimpleNamespace(device_mesh=mesh)
    )
    agreed = broadcast_in_tensor_parallel_group(f"rank {dist.get_rank()}", trainer)
    print(json.dumps({"models": found, "generated": generated.token_ids.tolist(), "agreed": agreed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
