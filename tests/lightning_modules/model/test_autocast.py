"""Autocast copies each weight once for all passes of a rollout, and never uses an old copy."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.model.autocast import weights_cast_once
from lightning_modules.model.linear import with_fast_products
from lightning_modules.model.lora import LoRA
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from tests.lightning_modules.architectures import small_model


class Copies(TorchDispatchMode):
    """Counts the copies of matrices with the sizes of a weight, in either order."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.count = sizes, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        copied = function is torch.ops.aten._to_copy.default and set(arguments[0].shape) in self.sizes
        self.count += copied
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("length", [2, 6])
def test_a_rollout_copies_each_weight_once(length, adapted):
    """The weights that adapters leave frozen, too, which are frozen again after it."""
    model = with_fast_products(small_model("llama", intermediate_size=67))
    if adapted:
        LoRA(rank=3).adapt(model)
    engine, trained = TransformersEngine(), [weight.requires_grad for weight in model.parameters()]
    weights = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        engine.load_policy(model)
        with Copies([set(weight.shape) for weight in weights]) as copies:
            engine.generate([[3, 8], [7]], SamplingParameters(length, (1,), samples_per_prompt=2))
    assert copies.count == len(weights)
    assert [weight.requires_grad for weight in model.parameters()] == trained
    assert all(trained) is not adapted


def test_changed_weights_are_copied_again_in_the_next_context():
    layer, inputs = torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    outputs = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(2):
            with weights_cast_once(layer), torch.no_grad():
                outputs.append(layer(inputs))
            layer.weight.data.mul_(2)
    assert torch.equal(outputs[1], 2 * outputs[0])


def test_changed_weights_are_copied_again_after_the_context():
    layer, inputs = torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with weights_cast_once(layer), torch.no_grad():
            before = layer(inputs)
        layer.weight.data.mul_(2)
        after = layer(inputs)
        assert not torch.is_autocast_cache_enabled()
    assert torch.equal(after, 2 * before)
    assert after.requires_grad
    after.sum().backward()
    assert layer.weight.grad is not None
