"""LoRA: low-rank adapters, trained in place of the weights that they are added to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from lightning_modules.distributed import rank
from lightning_modules.model.sharding import whole
from lightning_modules.model.weights import policy_weights


@dataclass(frozen=True)
class LoRA:
    r"""Adapters of `peft`: a frozen weight $W$ acts as $W + \frac{\alpha}{r} B A$, and $A$ and $B$ are trained.

    There is no dropout: in a policy it would make the log-probabilities of the trainer differ from the sampler's.

    Args:
        rank: $r$, number of rows of $A$ and of columns of $B$.
        alpha: $\alpha$.
        target_modules: which linear layers are adapted: `all-linear` for all but the output layer, the names or ends
            of names of some, or a regular expression that whole names match.
        seed: of $A$'s first values, which are the same on every rank and device; $B$ begins at zero.
        export: what `save` writes: the whole model with the adapters `merged` into its weights, or the `adapter` alone.

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
        if self.rank < 1:
            raise ValueError(f"`rank` is {self.rank}; pass 1 or more.")
        if self.alpha < 1:
            raise ValueError(f"`alpha` is {self.alpha}; pass 1 or more, such as twice the rank.")
        if not self.target_modules:
            raise ValueError(f"`target_modules` is {self.target_modules!r}; pass `all-linear` or names of layers.")
        if self.export not in ("merged", "adapter"):
            raise ValueError(f"`export` is {self.export!r}; pass 'merged' or 'adapter'.")
        if find_spec("peft") is None:
            raise ImportError("LoRA needs `peft`, which is not installed; pip install 'aggregate-po[lora]', or peft.")

    @property
    def form(self) -> dict[str, Any]:
        """What a model with trained adapters must be adapted with again."""
        return {"rank": self.rank, "alpha": self.alpha, "target_modules": self.target_modules}

    def adapt(self, model: PreTrainedModel) -> None:
        """Freeze the weights and put adapters beside them, which change nothing before they are trained.

        Raises:
            ValueError: `target_modules` names no layer or one that cannot be adapted, or the model has adapters.
        """
        import peft

        if getattr(model, "peft_config", None):
            raise ValueError(f"the model {model.name_or_path!r} has adapters already; merge them into a model first.")
        targets = self.target_modules
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        config.base_model_name_or_path = model.name_or_path
        # The first values come from a generator that no rank has drawn from before; the global state stays.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(self.seed)
            try:
                peft.inject_adapter_in_model(config, model)
            except ValueError as error:
                raise ValueError(f"`target_modules` is {targets!r}; pass names of linear layers. {error}") from error
        # An adapted embedding has no place in a model that ties it to the output layer, which is used on its own too.
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
        model.eval()  # as it was loaded; new layers begin in training mode

    def save(self, model: PreTrainedModel, folder: str | Path) -> None:
        """Write the adapted model, which stays as it is, for `from_pretrained` of transformers or, an adapter, peft.

        A sharded model is gathered, so every rank must call it; the first one writes.
        """
        if self.export == "merged":
            # What is merged is new, and need not stand beside the model on its device.
            own = {parameter.data_ptr() for parameter in model.parameters()}
            gathered = policy_weights(model)
            weights = {name: w if w.data_ptr() in own else w.cpu() for name, w in gathered if rank() == 0}
            if rank() == 0:
                model.save_pretrained(folder, state_dict=weights)
            return
        import peft

        adapter = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        named = {f"base_model.model.{name}": whole(weight).contiguous() for name, weight in adapter.items()}
        if rank() != 0:
            return
        model.peft_config["default"].save_pretrained(str(folder))  # makes the folder
        save_file(named, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Let the model compute what it did before it was adapted."""
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
