"""The velocity model of the two-dimensional task, pre-trained by conditional flow matching and cached."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_positive
from lightning_modules.cache import arguments_key, cached_folder
from lightning_modules.flow.mixture.distribution import HALVES, random_points
from lightning_modules.flow.mixture.velocity import MixtureVelocity
from lightning_modules.flow.model import FlowModel, FlowModelSource
from lightning_modules.progress import progress_bar

_WEIGHTS = "velocity.safetensors"
_FORMAT = 1  # raise it when the same arguments make other weights, so that no stale ones are loaded from the cache


@dataclass(frozen=True)
class MixtureWarmStart(FlowModelSource):
    """`MixtureVelocity`, pre-trained on the mixture by conditional flow matching in seconds.

    A point of the mixture and standard normal noise are joined by a straight path, and the velocity at a uniformly
    random time of it is regressed on their difference.

    Args:
        steps: Number of optimizer steps.
        batch_size: Number of points per optimizer step.
        learning_rate: Peak learning rate of Adam, reached after 20 warm-up steps; it decays to 0 by a cosine schedule.
        seed: Seed of the initial weights and of the points.

    Raises:
        ValueError: a number is not positive.

    Reference: Lipman et al. (2023), arXiv:2210.02747.
    """

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)

    @override
    def prepare(self) -> None:
        self._folder()

    @override
    def load(self) -> FlowModel:
        with torch.device("meta"):  # initial weights would use the random state of the process
            model = MixtureVelocity()
        model.load_state_dict(load_file(self._folder() / _WEIGHTS), assign=True)
        return model

    @override
    def save(self, model: FlowModel, folder: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)

    def _folder(self) -> Path:
        return cached_folder(f"mixture-{arguments_key(format=_FORMAT, **asdict(self))}", self._make)

    def _make(self, folder: Path) -> None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(False):
            torch.manual_seed(self.seed)
            model = MixtureVelocity()
            self._train(model)
        self.save(model, folder)

    def _train(self, model: MixtureVelocity) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        progress = progress_bar(iterable=range(self.steps), desc="flow matching", unit="step")
        for step in progress:
            optimizer.zero_grad()
            loss = self._loss(model, generator)
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

    def _loss(self, model: MixtureVelocity, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity on a random batch."""
        conditions = torch.randint(len(HALVES), (self.batch_size,), generator=generator)
        samples = random_points(conditions, generator)
        noise = torch.randn(samples.shape, generator=generator)
        times = torch.rand(self.batch_size, generator=generator)
        latents = torch.lerp(samples, noise, times[:, None])
        return (model(latents, times, condition=conditions) - (noise - samples)).square().mean()

    def _learning_rate_factor(self, step: int, warmup_steps: int = 20) -> float:
        return min((step + 1) / warmup_steps, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))
