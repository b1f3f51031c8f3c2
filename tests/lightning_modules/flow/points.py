"""Runs of a small flow-matching model of points in the plane."""

from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn

from aggregate_po.advantages import GroupCentered
from aggregate_po.recipes import grpo
from lightning_modules.flow import FlowDataModule, FlowModel, FlowModelSource, FlowModule
from tests.lightning_modules.training import quiet_trainer

EXAMPLES = [{"prompt": f"toward {target}", "target": target} for target in (-1.0, -0.5, 0.5, 1.0)]


class Points(FlowModel):
    """Velocity of a point in the plane, given a target for its first coordinate; each row by itself."""

    latent_shape = (2,)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 4, generator=generator) * 0.3)
        self.bias = nn.Parameter(torch.zeros(2))

    def encode(self, examples):
        return {"target": torch.tensor([example["target"] for example in examples], device=self.device)}

    def forward(self, latents, times, target):
        features = torch.cat([latents, times[:, None], target[:, None]], dim=-1)
        return (features[:, None, :] * self.weight.to(latents.dtype)).sum(dim=-1) + self.bias

    def decode(self, latents):
        return list(latents.cpu())


class PointsSource(FlowModelSource):
    def prepare(self):
        pass

    def load(self):
        return Points()

    def save(self, model, folder):
        save_file(model.state_dict(), folder / "model.safetensors")


def closeness(sample, example):
    """A reward that is highest where the first coordinate is the target."""
    return -abs(float(sample[0]) - example["target"])


def height(sample, example):
    return float(sample[1])


def points_data(**options):
    defaults = {
        "dataset": EXAMPLES,
        "reward": closeness,
        "group_size": 4,
        "prompts_per_rollout": 4,
        "updates_per_rollout": 1,
        "steps": 5,
        "evaluation_steps": 8,
        "advantages": GroupCentered(),
    }
    return FlowDataModule(**{**defaults, **options})


def fitted_points(folder, objective=None, data=None, module=None, ckpt_path=None, **trainer_options):
    """A finished `fit`, with its trainer, module and data."""
    data = points_data() if data is None else data
    module = FlowModule(PointsSource(), objective or grpo(1e-4), learning_rate=1e-3) if module is None else module
    trainer = quiet_trainer(folder, **trainer_options)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return SimpleNamespace(trainer=trainer, module=module, data=data, metrics=dict(trainer.callback_metrics))
