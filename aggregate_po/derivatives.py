"""Derivatives by autograd, for parts without a closed form."""

from collections.abc import Callable

import torch
from torch import Tensor

from aggregate_po.token_ratios import TokenRatios


def elementwise_derivative(function: Callable[[TokenRatios], Tensor], ratios: TokenRatios) -> Tensor:
    """Return the derivative of `function` with respect to `ratios.log_ratio`, in the shape of `log_ratio`.

    `function` must not mix completions. The derivative is also available under `torch.no_grad` and
    `torch.inference_mode`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = ratios.requiring_grad()
        output = function(inputs)
        if not output.requires_grad:
            return torch.zeros_like(inputs.log_ratio)
        (derivative,) = torch.autograd.grad(output.sum(), inputs.log_ratio, materialize_grads=True)
    return derivative
