"""Linear layers of a policy, whose products of matrices are the faster ones of a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from aggregate_po.products import product

_Model = TypeVar("_Model", bound=nn.Module)


class Linear(nn.Linear):
    """A linear layer; on a CPU its product is `aggregate_po.products.product`."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        # Autocast keeps its copy of a weight, but none of the transposed one.
        if not input.is_cpu or isinstance(self.weight, DTensor) or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        output = product(input.reshape(-1, self.in_features), self.weight.t()).view(
            *input.shape[:-1], self.out_features
        )
        return output if self.bias is None else output + self.bias


def with_fast_products(model: _Model) -> _Model:
    """Return the model; its linear layers, which stay the same objects, have the products of this module."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
