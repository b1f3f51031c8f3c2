"""Small random models of many architectures."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 16,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
CONVOLUTION = {"conv_L_cache": 3, "layer_types": ["conv", "full_attention"], "block_ff_dim": 64}
LATENT = {
    "head_dim": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
# By the `model_type` of transformers.
OPTIONS = {
    "bamba": {**MAMBA, "attn_layer_indices": [1], "mamba_expand": 2, "attn_rotary_emb": 8},
    "bert": {"is_decoder": False},
    "bloom": {"n_layer": 2, "n_head": 4},
    "cohere": {},
    "cohere2": WINDOW,
    "deepseek_v2": {**EXPERTS, **LATENT},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "exaone4": WINDOW,
    "falcon_h1": {**MAMBA, "mamba_n_heads": 4, "mamba_d_ssm": 32},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "gemma": {},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "glm4": {},
    "glm4_moe": {**EXPERTS, "n_group": 1, "topk_group": 1},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {**EXPERTS, **WINDOW},
    "granite": {},
    "granitemoehybrid": {
        **EXPERTS,
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "mamba_expand": 2,
        "shared_intermediate_size": 32,
    },
    "jamba": {
        **EXPERTS,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": CONVOLUTION,
    "lfm2_moe": {**EXPERTS, **CONVOLUTION},
    "llama": {},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 8, "expand": 2},
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    "mistral": {"sliding_window": 4},
    "mixtral": EXPERTS,
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": EXPERTS,
    "olmo_hybrid": {**LINEAR, "linear_num_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {},
    "phimoe": EXPERTS,
    "qwen2": {},
    "qwen2_moe": EXPERTS,
    "qwen3": {},
    "qwen3_5_moe_text": {**EXPERTS, **LINEAR},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": EXPERTS,
    "qwen3_next": {**EXPERTS, **LINEAR},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {},
    "xlstm": {"num_heads": 4, "embedding_dim": 32, "num_blocks": 2, "chunk_size": 8},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "use_mem_rope": True,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
}


def small_config(kind, **options):
    return AutoConfig.for_model(kind, **{**SIZES, **OPTIONS.get(kind, {}), **options})


def small_model(kind, **options):
    """A random model whose attention and states depend on the context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small_config(kind, **options)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter += 0.1 * torch.randn_like(parameter)
    return model
