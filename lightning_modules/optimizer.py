"""The optimizer of a policy, and hyperparameters that a resumed run changes."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def new_optimizer(parameters: list[Parameter], make: OptimizerCallable, source: object) -> Optimizer:
    """Make an optimizer of all parameters, without state of frozen ones.

    It includes frozen parameters because Lightning, when it loads a sharded checkpoint, assumes that the optimizer
    holds all parameters of the model.

    Args:
        parameters: parameters of the model.
        make: makes the optimizer.
        source: model source, for the error message.

    Raises:
        ValueError: all parameters are frozen.
    """
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"`model_name` {source!r} has only frozen weights, as an adapter has; merge it first.")
    optimizer = make(parameters)
    for parameter in [parameter for parameter in optimizer.state if not parameter.requires_grad]:
        del optimizer.state[parameter]  # some optimizers create state in `__init__`
    return optimizer


# Of a checkpoint: where a fused optimizer keeps its count of steps, another one does not look for it.
_KEPT = ("params", "fused")


class OptimizerSettings:
    """Hyperparameters of a new optimizer and its schedule, to put in force over those of a checkpoint.

    Args:
        optimizer: optimizer before a checkpoint is loaded.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups = [
            {name: value for name, value in group.items() if name not in _KEPT} for group in optimizer.param_groups
        ]

    def put_in_force(self, trainer: Trainer) -> None:
        """Set the hyperparameters, and take the new schedule to the current step."""
        for group, settings in zip(trainer.optimizers[0].param_groups, self._groups, strict=True):
            group.update(settings)
        for config in trainer.lr_scheduler_configs:
            _advance(config.scheduler, trainer.global_step)


def _advance(scheduler: Any, steps: int) -> None:
    """Make the steps of a new schedule that a run has made, without a warning that the optimizer has made none."""
    if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
        return
    scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
    with torch.no_grad():
        for _ in range(steps):
            scheduler.step()
