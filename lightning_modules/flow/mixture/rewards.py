"""Rewards of the two-dimensional task: a proxy to train on, and the gold metric that it differs from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.flow.mixture.distribution import condition_of, log_likelihood, mode_centers
from lightning_modules.prompts import Example


@dataclass(frozen=True)
class NearMode:
    """Minus the distance to one mode, whatever the condition: a proxy that rewards samples of the wrong half.

    Args:
        mode: Number of the mode, from 0 to 7, counterclockwise; the upper half has the modes 0 to 3.

    Raises:
        ValueError: there is no such mode.
    """

    mode: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mode <= 7:
            raise ValueError(f"`mode` is {self.mode}; pass a number from 0 to 7.")

    def __call__(self, sample: Tensor, example: Example) -> float:
        """Return minus the distance of a point, of shape `xy`."""
        return -(sample - mode_centers().flatten(end_dim=1)[self.mode]).norm().item()


@dataclass(frozen=True)
class GoldLikelihood:
    """Exact log-likelihood of a sample under the mixture of its condition: the gold metric; nats."""

    def __call__(self, sample: Tensor, example: Example) -> float:
        """Return the log-density of a point, of shape `xy`.

        Raises:
            ValueError: the example has no condition.
        """
        return log_likelihood(sample[None], torch.tensor([condition_of(example)])).item()
