"""Linear layers with faster products: outputs and gradients of a model stay what they were, to rounding."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_modules.model.linear import Linear, with_fast_products


def layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(300, 120, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300,), (64, 300), (4, 16, 300), (2, 3, 16, 300), (0, 300)])
def test_outputs_and_gradients_are_those_of_a_linear_layer(bias, shape):
    plain, fast = layer(bias), with_fast_products(layer(bias))
    torch.manual_seed(1)
    inputs = torch.randn(shape)
    results = []
    for module in (plain, fast):
        own = inputs.clone().requires_grad_()
        output = module(own)
        output.square().sum().backward()
        results.append([output, own.grad, *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_stay_the_same_objects_with_the_same_weights():
    model = nn.Sequential(layer(), nn.ReLU(), nn.Sequential(layer()))
    before, weights = list(model.modules()), {name: id(value) for name, value in model.named_parameters()}
    assert with_fast_products(model) is model
    assert list(model.modules()) == before
    assert {name: id(value) for name, value in model.named_parameters()} == weights
    assert [type(module) for module in (model[0], model[2][0])] == [Linear, Linear]


def test_subclasses_with_products_of_their_own_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    assert type(with_fast_products(nn.Sequential(Scaled(4, 4)))[0]) is Scaled


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_layer_can_be_copied(copied):
    fast = with_fast_products(layer())
    inputs = torch.randn(64, 300)
    assert torch.equal(copied(fast)(inputs), fast(inputs))


def test_the_backward_pass_may_compute_the_layer_again():
    fast = with_fast_products(layer())
    inputs = torch.randn(64, 300, requires_grad=True)
    (plain,) = torch.autograd.grad(fast(inputs).square().sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(fast, inputs, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.square().sum(), inputs)[0], plain)
