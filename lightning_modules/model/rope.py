"""Rotary positions that transformers scales by the longest row of each call, fixed for a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

_fixed: WeakSet[nn.Module] = WeakSet()  # models; those without such positions, too


def depends_on_length(model: nn.Module) -> bool:
    """Whether the positions of a row depend on the longest row of its call, as under LongRoPE and dynamic NTK."""
    return bool(_scaled_by_length(model))


def fix_rope(model: PreTrainedModel, longest: int | None = None) -> None:
    """Make each call choose its rotary factors as if its longest row had the given length.

    The factors are then those of the whole run, whatever else is in a call; vLLM chooses them by its `max_model_len`
    in the same way. The first length counts, and later ones are ignored.

    Args:
        model: model that may have such positions; others are unchanged.
        longest: number of tokens of the longest row of the run; that of the model's configuration when None.

    Raises:
        ValueError: by the forward pass, if a row is longer.
    """
    if model in _fixed:
        return
    _fixed.add(model)
    for module in _scaled_by_length(model):
        unscaled, most = _lengths(module)
        length = max(unscaled, most if longest is None else longest)  # all up to the first have the same factors
        module.forward = _of_length(length, module.forward)
        rank_zero_info(
            f"The rotary factors of {type(module).__name__} depend on length: those for {length:,} tokens are used, "
            f"{'the unscaled ones' if length == unscaled else f'scaled beyond {unscaled:,}'}."
        )


def _scaled_by_length(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if any(map(_is_scaled, _rope_types(module)))]


def _rope_types(module: nn.Module) -> list[str]:
    """Return the rope types of a rotary module, one for each kind of layer; none for other modules."""
    types = getattr(module, "rope_type", None)
    return [str(kind) for kind in (types.values() if isinstance(types, dict) else [types])]


def _is_scaled(rope_type: str) -> bool:
    return rope_type == "longrope" or "dynamic" in rope_type


def _lengths(module: Any) -> tuple[int, int]:
    """Return the most tokens for which a rotary module does not scale, and the most that it is made for."""
    parameters, limit = module.config.rope_parameters, module.config.max_position_embeddings
    nested = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    scaled = [kind for kind in nested if _is_scaled(kind["rope_type"])]
    # The limit is after the scaling under LongRoPE, and before it under dynamic NTK.
    long = [kind["original_max_position_embeddings"] for kind in scaled if kind["rope_type"] == "longrope"]
    factors = [kind.get("factor", 1.0) for kind in scaled if kind["rope_type"] != "longrope"]
    return min([*long, limit]), int(limit * max(factors, default=1.0))


def _of_length(length: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward method of a rotary module as if each call had a row of this length."""

    def fixed(x: Tensor, position_ids: Tensor, *args: Any, **options: Any) -> Any:
        if int(position_ids.max()) >= length:  # transformers compares the same number, so nothing more is waited for
            raise ValueError(
                f"a row has {int(position_ids.max()) + 1} tokens, but the rotary factors of the model were fixed for "
                f"{length}; lower `max_completion_length`, or leave out longer prompts."
            )
        last = torch.full_like(position_ids[..., :1], length - 1)
        embedded = forward(x, torch.cat([position_ids, last], dim=-1), *args, **options)
        return _without_last(embedded)

    return fixed


def _without_last(embedded: Any) -> Any:
    """Drop the last position from cosines and sines, or from their complex form; shape `... time dimension`."""
    if isinstance(embedded, Tensor):
        return embedded[..., :-1, :]
    return tuple(_without_last(part) for part in embedded)
