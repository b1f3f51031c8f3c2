"""A small velocity model of points, conditioned on a half of the circle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from aggregate_po import PerCompletion
from lightning_modules.flow.mixture.distribution import condition_of
from lightning_modules.flow.model import FlowModel
from lightning_modules.prompts import Example

_WIDTH = 64


class MixtureVelocity(FlowModel):
    """Perceptron with two hidden layers on point, time and condition; 4,610 parameters."""

    latent_shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 2)
        )

    @override
    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {"condition": torch.tensor([condition_of(example) for example in examples], device=self.device)}

    @override
    def forward(self, latents: Tensor, times: PerCompletion, **conditions: Tensor) -> Tensor:
        signs = 1 - 2 * conditions["condition"]  # 1 for the upper half, -1 for the lower half
        features = torch.cat([latents, times[:, None], signs[:, None]], dim=1)
        return self.layers(features.to(next(self.parameters()).dtype))

    @override
    def decode(self, latents: Tensor) -> Sequence[Tensor]:
        return list(latents.detach().float().cpu())
