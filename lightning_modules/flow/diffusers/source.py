"""A pipeline of `diffusers` by its path, with LoRA or all weights of the transformer trained."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from aggregate_po.extras import install_command
from lightning_modules.flow.diffusers.lora import TransformerLoRA
from lightning_modules.flow.diffusers.model import StableDiffusion3
from lightning_modules.flow.model import FlowModel, FlowModelSource
from lightning_modules.model.lora import adapter_weights
from lightning_modules.validation import require_at_least

_CLASS = "StableDiffusion3Pipeline"
_LONGEST_PROMPT = 512  # tokens, of the T5 encoder
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DiffusersPipeline(FlowModelSource):
    """A pipeline of the class `StableDiffusion3Pipeline`, whose transformer is trained.

    Text encoders and VAE are frozen, and so is the transformer under LoRA. Rewards receive PIL images. The latents of a
    step, its mean and its density are float32.

    Args:
        path: Folder of the pipeline, as `save_pretrained` writes it, or its id on the Hugging Face Hub.
        lora: Adapters to train; all weights of the transformer are trained when None.
        height: Height of the images in pixels; the one that the pipeline was made for when None.
        width: Width of the images in pixels; the one that the pipeline was made for when None.
        guidance: Scale of classifier-free guidance, in sampling and training; none up to 1.
        negative_prompt: Prompt that guidance leads away from.
        t5: Whether the T5 encoder is loaded, which has most of the weights; without it, its embeddings are zero.
        max_sequence_length: Number of tokens of a prompt that the T5 encoder reads, the first ones of a longer prompt.
        text_dtype: Data type of the text encoders and of their embeddings.
        transformer_dtype: Data type of the weights of the transformer; only float32 without LoRA.
        gradient_checkpointing: Whether the backward pass computes activations of the transformer again, to save memory.
        revision: Branch, tag or commit of a repository on the Hub; the default branch when None.

    Raises:
        ImportError: `diffusers` is not installed.
        ValueError: an argument is out of its range.

    Reference: Esser et al. (2024), arXiv:2403.03206.
    """

    path: str
    lora: TransformerLoRA | None = None
    height: int | None = None
    width: int | None = None
    guidance: float = 4.5
    negative_prompt: str = ""
    t5: bool = True
    max_sequence_length: int = 256
    text_dtype: DType = "bfloat16"
    transformer_dtype: DType = "float32"
    gradient_checkpointing: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        require_at_least(1, height=self.height, width=self.width, max_sequence_length=self.max_sequence_length)
        require_at_least(0, guidance=self.guidance)
        if self.max_sequence_length > _LONGEST_PROMPT:
            raise ValueError(f"`max_sequence_length` is {self.max_sequence_length}; pass at most {_LONGEST_PROMPT}.")
        for name in ("text_dtype", "transformer_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; pass one of {', '.join(_DTYPES)}.")
        if self.lora is None and self.transformer_dtype != "float32":
            raise ValueError(
                f"`transformer_dtype` is {self.transformer_dtype!r}, in which small updates of weights are lost; pass "
                "'float32', or `lora`."
            )
        if find_spec("diffusers") is None:
            raise ImportError(f"`diffusers` is not installed; run {install_command('diffusers')}.")

    @property
    @override
    def form(self) -> dict[str, Any]:
        return {"transformer": "all weights"} if self.lora is None else self.lora.form

    @override
    def prepare(self) -> None:
        """Check that `path` is a pipeline of the right class, and download it if it is on the Hub.

        Raises:
            ValueError: `path` is no such pipeline.
        """
        pipeline_class = _pipeline_class()
        try:
            found = pipeline_class.load_config(self.path, revision=self.revision)["_class_name"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"`path` is {self.path!r}, which is neither the folder of a pipeline, with model_index.json, nor the "
                f"id of one that can be reached on the Hub. {error}"
            ) from error
        if found != _CLASS:
            raise ValueError(
                f"`path` is {self.path!r}, a {found}; pass a {_CLASS}, or write a FlowModelSource for that class."
            )
        if not Path(self.path).is_dir():
            pipeline_class.download(self.path, revision=self.revision)

    @override
    def load(self) -> FlowModel:
        dtypes = {"default": self.text_dtype, "transformer": self.transformer_dtype, "vae": "float32"}
        options: dict[str, Any] = {"dtype": {name: _DTYPES[dtype] for name, dtype in dtypes.items()}}
        if not self.t5:
            options |= {"text_encoder_3": None, "tokenizer_3": None}
        with torch.random.fork_rng(devices=[]):
            pipeline = _pipeline_class().from_pretrained(self.path, revision=self.revision, **options)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        transformer = pipeline.transformer
        if self.lora is None:
            transformer.requires_grad_(True)
        else:
            self.lora.adapt(transformer)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        guidance = self.guidance, self.negative_prompt, self.max_sequence_length
        return StableDiffusion3(pipeline, self.height, self.width, *guidance).eval()

    @override
    def save(self, model: FlowModel, folder: Path) -> None:
        """Write what was trained.

        Adapters are a file for `load_lora_weights` of the pipeline; all weights of the transformer are a folder
        `transformer` for `from_pretrained` of its class.
        """
        assert isinstance(model, StableDiffusion3)
        if self.lora is None:
            model.transformer.save_pretrained(folder / "transformer")
            return
        _pipeline_class().save_lora_weights(
            folder,
            transformer_lora_layers=adapter_weights(model.transformer),
            transformer_lora_adapter_metadata=model.transformer.peft_config["default"].to_dict(),  # it has the scale
        )


def _pipeline_class() -> Any:
    import diffusers

    return getattr(diffusers, _CLASS)
