"""LoRA: low-rank adapters that are trained while the weights of the model are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from aggregate_po.extras import install_command
from lightning_modules.distributed import rank
from lightning_modules.model.sharding import full_tensor
from lightning_modules.model.weights import policy_weights


@dataclass(frozen=True)
class LoRA:
    r"""Adapters of `peft`: a frozen weight $W$ acts as $W + \frac{\alpha}{r} B A$, and $A$ and $B$ are trained.

    There is no dropout: it would make the log-probabilities of the trainer differ from those of the sampler.

    Args:
        rank: Rank $r$ of the adapters: the number of rows of $A$ and of columns of $B$.
        alpha: Scale $\alpha$ of the adapters; their product is multiplied by $\alpha / r$.
        target_modules: Linear layers to adapt: `all-linear` for all but the output layer, a list of names or name
            suffixes, or a regular expression that matches full names.
        seed: Seed of the initial values of $A$, which are the same on every rank and device; $B$ starts at zero.
        export: Format of the exported model: `merged` writes the full model with the adapters merged into its weights,
            and `adapter` writes the adapter only.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: an argument is out of its range.

    Reference: Hu et al. (2021), arXiv:2106.09685.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"
    seed: int = 0
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        require_adapters(self.rank, self.alpha, self.target_modules)
        if self.export not in ("merged", "adapter"):
            raise ValueError(f"`export` is {self.export!r}; pass 'merged' or 'adapter'.")

    @property
    def form(self) -> dict[str, Any]:
        """Arguments that fix the shapes and the scale of the adapters, for a checkpoint."""
        return {"rank": self.rank, "alpha": self.alpha, "target_modules": self.target_modules}

    def adapt(self, model: PreTrainedModel) -> None:
        """Freeze the weights and add adapters, which do not change the output of the model until they are trained.

        Raises:
            ValueError: `target_modules` matches no layer or a layer that cannot be adapted, or the model already has
                adapters.
        """
        import peft

        if getattr(model, "peft_config", None):
            raise ValueError(f"the model {model.name_or_path!r} has adapters already; merge them into a model first.")
        targets = self.target_modules
        causal = {"task_type": "CAUSAL_LM", "base_model_name_or_path": model.name_or_path}
        add_adapters(model, self.rank, self.alpha, targets, self.seed, **causal)
        # An adapted embedding would break tying with the output layer, whose weight is also used on its own.
        layers = {name: layer for name, layer in model.named_modules() if _is_adapted(layer)}
        wrong = [
            name
            for name, layer in layers.items()
            if not isinstance(layer, peft.tuners.lora.Linear) or layer is model.get_output_embeddings()
        ]
        if wrong:
            raise ValueError(
                f"`target_modules` is {targets!r}, which has {', '.join(wrong)}; pass linear layers other than the "
                "output layer."
            )
        model.eval()  # new layers start in training mode

    def save(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Write the merged model for `from_pretrained` of transformers, or the adapter for that of `peft`.

        The model itself is unchanged. Every rank must call it, since the weights may be sharded; rank 0 writes.
        """
        if self.export == "merged":
            # Merged tensors are copies, so they are moved off the device of the model.
            own = {parameter.data_ptr() for parameter in model.parameters()}
            gathered = policy_weights(model)
            weights = {name: w if w.data_ptr() in own else w.cpu() for name, w in gathered if rank() == 0}
            if rank() == 0:
                model.save_pretrained(folder, state_dict=weights)
            return
        adapter = adapter_weights(model)
        tensors = {f"base_model.model.{name}": full_tensor(weight).contiguous() for name, weight in adapter.items()}
        if rank() != 0:
            return
        model.peft_config["default"].save_pretrained(str(folder))  # creates the folder
        save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


def require_adapters(rank: int, alpha: int, target_modules: str | list[str]) -> None:
    """Check the arguments of adapters, and that they can be made.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: an argument is out of its range.
    """
    if rank < 1:
        raise ValueError(f"`rank` is {rank}; pass 1 or more.")
    if alpha < 1:
        raise ValueError(f"`alpha` is {alpha}; pass 1 or more, such as twice the rank.")
    if not target_modules:
        raise ValueError(f"`target_modules` is {target_modules!r}; pass `all-linear` or names of layers.")
    if find_spec("peft") is None:
        raise ImportError(f"LoRA needs `peft`, which is not installed; run {install_command('lora')}, or install peft.")


def add_adapters(
    model: nn.Module, rank: int, alpha: int, target_modules: str | list[str], seed: int, **options: Any
) -> None:
    """Freeze the weights of any model and add adapters, with the same initial values on every rank and device.

    Args:
        model: model to adapt in place.
        rank: rank of the adapters.
        alpha: scale of the adapters.
        target_modules: layers to adapt.
        seed: seed of the initial values.
        options: further arguments of `peft.LoraConfig`.

    Raises:
        ValueError: `target_modules` matches no layer, or a layer that cannot be adapted.
    """
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_modules, lora_dropout=0.0, **options)
    # A fresh generator on every rank; the global random state is unchanged.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ValueError(f"`target_modules` is {target_modules!r}; pass names of linear layers. {error}") from error


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the adapters by name, as `peft` names them."""
    import peft

    return peft.get_peft_model_state_dict(model, save_embedding_layers=False)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable the adapters within the context."""
    layers: list[Any] = [layer for layer in model.modules() if _is_adapted(layer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _is_adapted(layer: torch.nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(layer, LoraLayer)


def form_of(lora: LoRA | None) -> dict[str, Any] | None:
    """Return the arguments that fix the shapes and the scale of adapters; None without adapters."""
    return None if lora is None else lora.form


def require_same_form(lora: LoRA | None, saved: dict[str, Any] | None) -> None:
    """Check that the adapters have the shapes of those of a checkpoint.

    Raises:
        ValueError: the shapes are others, or only one of the two has adapters.
    """
    if saved != form_of(lora):
        raise ValueError(f"`lora` is {lora}, but the checkpoint was made with {saved}; pass that.")
