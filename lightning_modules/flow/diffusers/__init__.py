"""Stable Diffusion 3 and 3.5, as pipelines of `diffusers`."""

from lightning_modules.flow.diffusers.lora import TransformerLoRA
from lightning_modules.flow.diffusers.model import StableDiffusion3
from lightning_modules.flow.diffusers.rewards import compressibility
from lightning_modules.flow.diffusers.source import DiffusersPipeline

__all__ = ["DiffusersPipeline", "StableDiffusion3", "TransformerLoRA", "compressibility"]
