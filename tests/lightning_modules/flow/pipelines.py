"""A Stable Diffusion 3 pipeline of random weights, small enough for two processors."""

import string

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

SHIFT = 3.0
WIDTH = 16  # of each text encoder


def save_pipeline(folder, **components):
    """Write a pipeline whose images have 16 pixels a side, with all three text encoders unless one is None."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {**_text_components(), "transformer": _transformer(), "vae": _vae()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    StableDiffusion3Pipeline(**{**made, "scheduler": scheduler, **components}).save_pretrained(folder)
    return str(folder)


def _text_components():
    letters = [*sorted(ByteLevel.alphabet()), *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    clip_vocabulary = {token: number for number, token in enumerate(words)}
    clip = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    t5_vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    t5_vocabulary += [(letter, -3.0) for letter in string.ascii_lowercase]
    t5 = T5Config(vocab_size=len(t5_vocabulary), d_model=2 * WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=1, num_heads=2)
    found = {}
    for number in ("", "_2"):
        found[f"tokenizer{number}"] = CLIPTokenizer(clip_vocabulary, [], model_max_length=16)
        found[f"text_encoder{number}"] = CLIPTextModelWithProjection(clip).eval()
    found["tokenizer_3"] = T5TokenizerFast(vocab=t5_vocabulary, extra_ids=0)
    found["text_encoder_3"] = T5EncoderModel(t5).eval()
    return found


def _transformer():
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _vae():
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
