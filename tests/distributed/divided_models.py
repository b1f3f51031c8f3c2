"""Logits and gradients of models whose layers are divided among ranks; a program, started by the tests."""

import copy
import json
import os
import sys

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

from lightning_modules.sharding import whole
from lightning_modules.tensor_parallel import divide

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
    """Logits of two sequences, and the whole gradients of a function of them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (2, 7), generator=generator)
    logits = model(input_ids=ids).logits
    (logits * torch.randn(logits.shape, generator=generator, dtype=torch.double)).sum().backward()
    return logits.detach(), {name: whole(value.grad) for name, value in model.named_parameters()}


def main() -> None:
    dist.init_process_group("gloo")
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too
        divided = copy.deepcopy(model)
        divide(divided, mesh)
        (logits, grads), (our_logits, our_grads) = gradients(model), gradients(divided)
        assert grads.keys() == our_grads.keys()
        apart = [(logits - our_logits).abs().max(), *((grads[key] - our_grads[key]).abs().max() for key in grads)]
        local, numbers = (
            sum(value.numel() for value in values)
            for values in ([value.to_local() for value in divided.parameters()], model.parameters())
        )
        size = max(value.abs().max().item() for value in grads.values())
        found[name] = {"apart": max(apart).item() / size, "share": local / numbers}
    if os.environ["RANK"] == sys.argv[1]:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
