"""Products of matrices by the faster of the two libraries that PyTorch multiplies with on a CPU.

PyTorch multiplies float32 matrices by MKL, whose code for AVX-512 seems to serve processors of Intel alone. oneDNN,
which comes with PyTorch as well, serves all that have AVX-512, and took half the time on one by AMD.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

_AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_LEAST = 2**20  # multiplications below which the overhead of a call outweighs the gain
_FEW = 64  # rows up to which the transposed product is faster, such as those of a sampled batch


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices, shapes `row inner` and `inner column`, as `left @ right` to rounding.

    It is differentiable any number of times. Other dtypes, devices and kinds of tensors are left to PyTorch.
    """
    if not _served(left, right):
        return left @ right
    if torch.is_grad_enabled() and (left.requires_grad or right.requires_grad):
        return _Product.apply(left, right)
    if len(left) <= _FEW:
        return _onednn(right.t(), left.t()).t().contiguous()
    return _onednn(left, right)


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return product(left, right)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        to_left, to_right = ctx.needs_input_grad
        return (
            product(gradient, right.t()) if to_left else None,
            product(left.t(), gradient) if to_right else None,
        )


def _served(left: Tensor, right: Tensor) -> bool:
    return (
        _AVAILABLE
        and left.is_cpu
        and left.dtype == right.dtype == torch.float32
        and left.shape[0] * right.numel() >= _LEAST
        and type(left) in _PLAIN
        and type(right) in _PLAIN
        and not torch.is_autocast_enabled("cpu")
    )


_PLAIN = (Tensor, torch.nn.Parameter)  # not distributed tensors, whose products need all ranks
