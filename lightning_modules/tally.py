"""Sums, minima and maxima by name, over micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from lightning import Trainer
from torch import Tensor

from lightning_modules.distributed import gathered_over_ranks

Values = Mapping[str, float]


@dataclass(frozen=True)
class Tally:
    """Named sums, minima and maxima that can be combined across micro-batches and ranks.

    Means and ratios are computed from the combined tally, so they do not depend on the split.

    Args:
        sums: values by name; `+` adds them.
        minima: values by name; `+` keeps the smaller one.
        maxima: values by name; `+` keeps the larger one.

    Example:
        >>> (Tally({"tokens": 3.0}) + Tally({"tokens": 4.0}, maxima={"ratio": 1.5})).sums
        {'tokens': 7.0}
    """

    sums: Values = field(default_factory=dict)
    minima: Values = field(default_factory=dict)
    maxima: Values = field(default_factory=dict)

    @classmethod
    def of(cls, **sums: Tensor) -> Tally:
        """Return a tally of sums given as scalar tensors on any device; they move to the CPU in one transfer."""
        if not sums:
            return cls()
        devices = [value.device for value in sums.values() if not value.is_cpu]
        device = devices[0] if devices else torch.device("cpu")  # scalars of the CPU join the others, and nothing waits
        values = torch.stack([value.detach().to(device, torch.double) for value in sums.values()]).tolist()
        return cls(dict(zip(sums, values, strict=True)))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            sums={**self.sums, **{name: self.sums.get(name, 0.0) + value for name, value in other.sums.items()}},
            minima={**self.minima, **{name: min(self.minima.get(name, v), v) for name, v in other.minima.items()}},
            maxima={**self.maxima, **{name: max(self.maxima.get(name, v), v) for name, v in other.maxima.items()}},
        )

    def over_ranks(self, trainer: Trainer) -> Tally:
        """Reduce over the data-parallel ranks in one collective; every rank must call it with the same names."""
        if trainer.world_size == 1:
            return self
        numbers = [*self.sums.values(), *self.minima.values(), *self.maxima.values()]
        ranks = gathered_over_ranks(torch.tensor([numbers], dtype=torch.double), trainer)
        parts = (ranks.T[: len(self.sums)], ranks.T[len(self.sums) :][: len(self.minima)])
        return Tally(
            sums=_by_name(self.sums, parts[0].sum(dim=-1)),
            minima=_by_name(self.minima, parts[1].amin(dim=-1)) if self.minima else {},
            maxima=_by_name(self.maxima, ranks.T[len(numbers) - len(self.maxima) :].amax(dim=-1))
            if self.maxima
            else {},
        )


def _by_name(names: Values, values: Tensor) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
