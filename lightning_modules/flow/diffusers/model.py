"""Velocity, text encoders and VAE of Stable Diffusion 3 as a flow-matching model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from aggregate_po import PerCompletion
from lightning_modules.flow.model import FlowModel
from lightning_modules.model.lora import without_adapters
from lightning_modules.prompts import Example


class StableDiffusion3(FlowModel):
    """Velocity, text encoders and VAE of a `StableDiffusion3Pipeline`.

    The transformer predicts noise minus sample, which is the velocity, and takes the time multiplied by the number of
    training times of the scheduler.

    Args:
        pipeline: the loaded pipeline.
        height: height of the images in pixels; the one that the pipeline was made for when None.
        width: width of the images in pixels; the one that the pipeline was made for when None.
        guidance: scale of classifier-free guidance; none up to 1.
        negative_prompt: prompt that guidance leads away from.
        max_sequence_length: number of tokens of a prompt that the T5 encoder reads.

    Raises:
        ValueError: the height or the width does not fit the pipeline.
    """

    def __init__(
        self,
        pipeline: Any,
        height: int | None = None,
        width: int | None = None,
        guidance: float = 4.5,
        negative_prompt: str = "",
        max_sequence_length: int = 256,
    ) -> None:
        super().__init__()
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.text_encoders = nn.ModuleList(
            [encoder for name, encoder in pipeline.components.items() if "text_encoder" in name and encoder is not None]
        )
        self.vae.enable_slicing()  # one image at a time
        self._pipeline, self._guidance = pipeline, guidance
        self._negative_prompt, self._max_sequence_length = negative_prompt, max_sequence_length
        self._times = pipeline.scheduler.config.num_train_timesteps
        rows, columns = self._latent_size("height", height), self._latent_size("width", width)
        self.latent_shape = (self.transformer.config.in_channels, rows, columns)

    def _latent_size(self, name: str, pixels: int | None) -> int:
        pipeline, config = self._pipeline, self.transformer.config
        pixels = pixels or pipeline.default_sample_size * pipeline.vae_scale_factor
        patch = pipeline.vae_scale_factor * config.patch_size
        if pixels % patch or pixels > patch * config.pos_embed_max_size:
            raise ValueError(
                f"`{name}` is {pixels}; pass a multiple of {patch}, at most {patch * config.pos_embed_max_size}."
            )
        return pixels // pipeline.vae_scale_factor

    @override
    @torch.no_grad()
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the embeddings of the prompts, and those of the negative prompt if there is guidance."""
        prompts = [_text_of(example) for example in examples]
        found = self._pipeline.encode_prompt(
            prompts,
            None,  # the same prompt for each text encoder
            None,
            device=self.device,
            do_classifier_free_guidance=self._guidance > 1,
            negative_prompt=self._negative_prompt,
            max_sequence_length=self._max_sequence_length,
        )
        names = ("prompt", "negative", "pooled_prompt", "pooled_negative")
        return {name: values for name, values in zip(names, found, strict=True) if values is not None}

    @override
    def forward(self, latents: Tensor, times: PerCompletion, **conditions: Tensor) -> Tensor:
        prompts, pooled = conditions["prompt"], conditions["pooled_prompt"]
        if "negative" not in conditions:
            return self._velocity(latents, times, prompts, pooled)
        away, toward = self._velocity(
            latents.repeat(2, 1, 1, 1),
            times.repeat(2),
            torch.cat([conditions["negative"], prompts]),
            torch.cat([conditions["pooled_negative"], pooled]),
        ).chunk(2)
        return away + self._guidance * (toward - away)

    def _velocity(self, latents: Tensor, times: PerCompletion, prompts: Tensor, pooled: Tensor) -> Tensor:
        dtype = self.transformer.pos_embed.proj.weight.dtype
        velocity = self.transformer(
            hidden_states=latents.to(dtype),
            timestep=times * self._times,
            encoder_hidden_states=prompts.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]
        return velocity.to(torch.promote_types(velocity.dtype, latents.dtype))

    @override
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Sequence[Any]:
        """Return PIL images."""
        config = self.vae.config
        with torch.autocast(self.device.type, enabled=False):
            scaled = (latents / config.scaling_factor + config.shift_factor).to(self.vae.dtype)
            images = self.vae.decode(scaled, return_dict=False)[0]
        return self._pipeline.image_processor.postprocess(images, output_type="pil")

    @override
    def initial_weights(self) -> AbstractContextManager[None] | None:
        return without_adapters(self.transformer) if getattr(self.transformer, "peft_config", None) else None


def _text_of(example: Example) -> str:
    prompt = example["prompt"]
    if not isinstance(prompt, str):
        raise ValueError(f'the "prompt" of an example is {prompt!r}; pass a text.')
    return prompt
