"""LoRA of the transformer of a `diffusers` pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_modules.model.lora import add_adapters, require_adapters


def _attention_projections() -> list[str]:
    """Return the projections of the joint attention, for text and image."""
    of_text = ["attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"]
    return [*of_text, "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"]


@dataclass(frozen=True)
class TransformerLoRA:
    r"""Adapters of the transformer of a pipeline: a frozen weight $W$ acts as $W + \frac{\alpha}{r} B A$.

    Entries of $A$ start normal with standard deviation $1/r$ and those of $B$ at zero. Adapters are float32.

    Args:
        rank: Rank $r$ of the adapters: the number of rows of $A$ and of columns of $B$.
        alpha: Scale $\alpha$ of the adapters; their product is multiplied by $\alpha / r$.
        target_modules: Linear layers to adapt: a list of names or name suffixes, `all-linear`, or a regular expression
            that matches full names. The default is the projections of the joint attention.
        seed: Seed of the initial values of $A$, which are the same on every rank and device.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: an argument is out of its range.

    Reference: the defaults are those of Flow-GRPO, arXiv:2505.05470.
    """

    rank: int = 32
    alpha: int = 64
    target_modules: str | list[str] = field(default_factory=_attention_projections)
    seed: int = 0

    def __post_init__(self) -> None:
        require_adapters(self.rank, self.alpha, self.target_modules)

    @property
    def form(self) -> dict[str, Any]:
        """Arguments that fix the shapes and the scale of the adapters, for a checkpoint."""
        return {"rank": self.rank, "alpha": self.alpha, "target_modules": self.target_modules}

    def adapt(self, transformer: nn.Module) -> None:
        """Freeze the weights and add adapters, which do not change the velocity until they are trained.

        Raises:
            ValueError: `target_modules` matches no layer or a layer that cannot be adapted.
        """
        shape = self.rank, self.alpha, self.target_modules
        add_adapters(transformer, *shape, self.seed, init_lora_weights="gaussian")
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
