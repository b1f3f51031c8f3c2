"""Copies of weights in the precision of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def weights_cast_once(model: nn.Module) -> Iterator[None]:
    """Let autocast keep its copies of a model's weights until the end of the context, for passes without gradient.

    The weights must not change in it. Lightning lets autocast make a copy in each pass, as copies made without gradient
    must not serve a pass with gradient. Autocast keeps none of a frozen weight, so all count as trained in the context.
    """
    enabled = torch.is_autocast_cache_enabled()
    frozen = [weight for weight in model.parameters() if weight.is_floating_point() and not weight.requires_grad]
    torch.set_autocast_cache_enabled(True)
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(enabled)
        for weight in frozen:
            weight.requires_grad_(False)
