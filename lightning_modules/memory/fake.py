"""Forward and backward passes of a policy on fake tensors, to count memory without weights or data.

The model is built from fake tensors, which have a shape and a dtype but no data, and its own passes run on them. The
count therefore covers whatever an architecture does, and needs no formula for each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lightning_modules.memory.live import LiveMemory
from lightning_modules.model.cache import TokenCache
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.lora import LoRA
from lightning_modules.model.outputs import logits_only
from lightning_modules.model.remote_code import remote_code_refused


@dataclass(frozen=True)
class Description:
    """Description of a policy without its weights.

    Args:
        config: Configuration of the model.
        dtype: Dtype of the weights.
        lora: Adapters that are trained instead of the weights, if any.
        layout: Sequence layout of the forward pass.
        context: the precision's, in which the forward pass runs.
    """

    config: PreTrainedConfig
    dtype: torch.dtype = torch.float32
    lora: LoRA | None = None
    layout: SequenceLayout = field(default_factory=SharedPrompts)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def model(self, device: str = "meta") -> PreTrainedModel:
        """Return the policy on a device; a fake mode must be active unless the device is `meta`."""
        with unset_fake_temporarily(), torch.device("meta"):
            with remote_code_refused(self.config.name_or_path):
                model = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype, trust_remote_code=False).eval()
            if self.lora is not None:
                self.lora.adapt(model)
        _move_without_data(model, device)
        return cast(PreTrainedModel, model)


def _move_without_data(model: nn.Module, device: str) -> None:
    """Replace the tensors of a model by empty ones on a device; tied tensors remain tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        tensors = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
            *((name, value) for name, value in vars(module).items() if isinstance(value, Tensor)),
        ]
        for name, value in tensors:
            if value not in made:
                bare = torch.empty(value.shape, dtype=value.dtype, device=device)
                is_parameter = isinstance(value, nn.Parameter)
                made[value] = nn.Parameter(bare, requires_grad=value.requires_grad) if is_parameter else bare
            setattr(module, name, made[value])


@contextmanager
def traced(description: Description) -> Iterator[tuple[PreTrainedModel, LiveMemory]]:
    """Run code on tensors without data, without gradient and in the precision of the policy.

    Since there is no data, a mask selects everything, a number is 0, and a comparison of numbers is False.

    Args:
        description: Policy without its weights.

    Yields:
        The policy, and the count of what is made besides it.
    """
    with FakeTensorMode(), torch.no_grad():
        model = description.model("cpu")
        with LiveMemory() as memory, Unmasked(), description.context():
            yield model, memory


class Unmasked(TorchDispatchMode):
    """Operations that need data, for tensors without: a mask selects everything, a number or comparison is 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        if func is torch.ops.aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            return args[0].flatten(0, args[1][0].ndim - 1).clone()
        if func is torch.ops.aten.index_put_.default and args[1][0].dtype == torch.bool:
            return args[0]
        return func(*args, **(kwargs or {}))


def cached_numbers(description: Description, tokens: int = 16) -> int:
    """Return the number of elements in the keys and values of one token, over all layers."""
    with traced(description) as (model, _), logits_only(model):
        cache, ones = TokenCache(model), torch.ones(1, tokens, dtype=torch.long)
        cache.read(ones, ones, torch.arange(tokens).unsqueeze(0), logits_to_keep=1)
        return sum(tensor.numel() for tensor in cache.keys_and_values()) // tokens


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
