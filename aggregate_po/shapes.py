"""Named tensor shapes, checked where tensors enter and where a custom part returns them."""

from typing import Annotated, Any

import torch
from einops import EinopsError, parse_shape
from torch import Tensor

PerToken = Annotated[Tensor, "batch time"]
PerCompletion = Annotated[Tensor, "batch"]

_REMEDIES = {
    "advantages": "pass one advantage per completion (see aggregate_po.advantages) or per token",
    "response_mask": "pass one mask entry per token, True on the tokens that are trained",
}


def bind_shapes(**tensors: tuple[Any, str]) -> dict[str, int]:
    """Check that named tensors have the named shapes and agree on every size.

    Args:
        tensors: `name=(tensor, "batch time")` for each argument; the first tensor with an axis sets its size.

    Returns:
        Size of each named axis.

    Raises:
        TypeError: a value is not a tensor.
        ValueError: a tensor does not have the axes of its pattern, or two sizes of one axis disagree.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, (tensor, pattern) in tensors.items():
        remedy = _REMEDIES.get(name, f"pass shape `{pattern}`")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` is {type(tensor).__name__}, not a tensor; {remedy}.")
        try:
            shape = parse_shape(tensor, pattern)
        except (EinopsError, RuntimeError):  # einops raises either, by the kind of mismatch
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}, but `{pattern}` was expected; {remedy}."
            ) from None
        for axis, size in shape.items():
            known, owner = sizes.setdefault(axis, (size, name))
            if size != known:
                raise ValueError(f"`{name}` has {axis}={size}, but `{owner}` has {axis}={known}; {remedy}.")
    return {axis: size for axis, (size, _) in sizes.items()}


def require_shape(part: object, method: str, result: Tensor, words: str, shape: torch.Size) -> None:
    """Check the shape of a result of a part; a wrong shape could broadcast and silently mix completions.

    Raises:
        ValueError: the result has another shape.
    """
    if result.shape != shape:
        raise ValueError(
            f"`{type(part).__name__}.{method}` returned shape {tuple(result.shape)}; return shape {words}, here "
            f"{tuple(shape)}."
        )
