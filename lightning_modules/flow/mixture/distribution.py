"""The target of the two-dimensional task: eight Gaussians on a circle, of which a condition selects a half."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.prompts import Example

HALVES = ("upper half", "lower half")
RADIUS, SPREAD = 1.5, 0.3
_MODES = 8


def mode_centers() -> Tensor:
    """Return the centers of the modes by half and counterclockwise within each; shape `half mode xy`."""
    angles = (torch.arange(_MODES) + 0.5) * 2 * math.pi / _MODES
    return (RADIUS * torch.stack([angles.cos(), angles.sin()], dim=-1)).reshape(len(HALVES), -1, 2)


def random_points(conditions: PerCompletion, generator: torch.Generator) -> Tensor:
    """Return a random point of the mixture for each condition; shape `batch xy`.

    Args:
        conditions: half of each point, 0 or 1; shape `batch`.
        generator: random generator on the CPU.
    """
    centers = mode_centers()
    modes = torch.randint(centers.shape[1], conditions.shape, generator=generator)
    return centers[conditions, modes] + SPREAD * torch.randn(len(conditions), 2, generator=generator)


def log_likelihood(points: Tensor, conditions: PerCompletion) -> PerCompletion:
    """Return the log-density of points under the mixture of their half; shape `batch`; nats.

    Args:
        points: points; shape `batch xy`.
        conditions: half of each point, 0 or 1; shape `batch`.
    """
    centers = mode_centers().to(points)[conditions]
    squared_distances = (points[:, None] - centers).square().sum(dim=-1)
    peak = -math.log(centers.shape[1] * 2 * math.pi * SPREAD**2)
    return peak + (-squared_distances / (2 * SPREAD**2)).logsumexp(dim=1)


def condition_of(example: Example) -> int:
    """Return the condition of an example.

    Raises:
        ValueError: it has none.
    """
    condition = example.get("condition")
    if condition not in (0, 1):
        raise ValueError(f"`condition` of the example is {condition!r}; pass 0 or 1, as MixtureConditions does.")
    return condition
