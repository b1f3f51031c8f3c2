"""Count of the bytes of live tensors, real or fake."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are created within the context, until they are freed.

    Tensors that existed before, such as weights, are not counted, and views and tensors that share a storage count
    once. Kernel workspaces are not counted, nor memory that an allocator reserves.

    Attributes:
        live: Current number of bytes.
        peak: Maximum of `live` since the context was entered, or since `reset_peak`.

    Example:
        >>> import torch
        >>> with LiveMemory() as memory:
        ...     first = torch.zeros(100)
        ...     total = (first + 1).sum()
        >>> memory.live, memory.peak
        (404, 804)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[UntypedStorage]] = {}

    def reset_peak(self) -> None:
        """Reset the peak to the current number of bytes."""
        self.peak = self.live

    def taken_peak(self) -> int:
        """Return the peak and reset it."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._note(value, 0)
        results = func(*args, **kwargs)
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self._note(value, value.untyped_storage().nbytes())
        return results

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            del self._seen[key]
            self.live -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
