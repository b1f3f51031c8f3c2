"""Copies of weights in the precision of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def weights_cast_once() -> Iterator[None]:
    """Let autocast keep its copies of the weights until the end of the context, in which the weights must not change.

    Lightning lets it make a copy in each pass, as copies made without gradient must not serve a pass with gradient.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(enabled)
