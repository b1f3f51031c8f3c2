"""Learning-rate schedules: decays over the length of a run, and the warm-up before any schedule."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from lightning.pytorch.cli import ReduceLROnPlateau as MonitoringReduceLROnPlateau
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, SequentialLR
from typing_extensions import override

from lightning_modules.validation import require_at_least


class Decay(LRScheduler):
    """Base class of schedules that decay from the peak learning rate to a fraction of it.

    A subclass implements `shape`.

    Args:
        optimizer: Optimizer whose learning rates are the peaks.
        min_lr_ratio: Learning rate at the end, as a fraction of the peak.
        decay_steps: Number of optimizer steps of the decay; all that follow the warm-up when None.

    Raises:
        ValueError: the fraction is not between 0 and 1, or the number is not positive.
    """

    def __init__(self, optimizer: Optimizer, min_lr_ratio: float = 0.0, decay_steps: int | None = None) -> None:
        if not 0 <= min_lr_ratio <= 1:
            raise ValueError(f"`min_lr_ratio` is {min_lr_ratio}; pass a fraction of the peak, from 0 to 1.")
        require_at_least(1, decay_steps=decay_steps)
        self.min_lr_ratio = min_lr_ratio
        self.decay_steps = decay_steps
        self._ends_with_run = decay_steps is None
        super().__init__(optimizer)

    def end_with(self, steps: float) -> None:
        """Set the number of steps to that of the run after the warm-up, unless the constructor was given another.

        Raises:
            ValueError: the run has no end.
        """
        if not self._ends_with_run:
            return
        if steps == math.inf:
            raise ValueError(
                f"`lr_scheduler` is {type(self).__name__}, but the run has no end; pass `max_steps` to the trainer, or "
                "`decay_steps` to the schedule."
            )
        self.decay_steps = max(int(steps), 1)

    @abstractmethod
    def shape(self, progress: float) -> float:
        """Return a number that decreases from 1 at progress 0 to 0 at progress 1."""

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group."""
        progress = min(self.last_epoch / self.decay_steps, 1.0) if self.decay_steps else 0.0
        ratio = self.min_lr_ratio + (1 - self.min_lr_ratio) * self.shape(progress)
        return [peak * ratio for peak in self.base_lrs]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state without the arguments, which a resumed run takes from its own configuration."""
        own = ("min_lr_ratio", "decay_steps", "_ends_with_run")
        return {name: value for name, value in super().state_dict().items() if name not in own}


class CosineDecay(Decay):
    """Half a cosine period from the peak learning rate to `min_lr_ratio` of it."""

    @override
    def shape(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class LinearDecay(Decay):
    """A straight line from the peak learning rate to `min_lr_ratio` of it."""

    @override
    def shape(self, progress: float) -> float:
        return 1 - progress


def scheduled(
    optimizer: Optimizer, warmup_steps: int, schedule: LRScheduler | ReduceLROnPlateau | None
) -> LRSchedulerConfigType:
    """Return Lightning's configuration of a schedule after a linear warm-up to the peak learning rate.

    Args:
        optimizer: optimizer of the schedule.
        warmup_steps: number of optimizer steps of the warm-up.
        schedule: schedule, whose first step is the one after the warm-up; constant when None. One that follows a metric
            takes a step after each rollout.

    Raises:
        ValueError: the schedule follows a metric and there is a warm-up, or it names no metric.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        return _on_plateau(schedule, warmup_steps)
    if schedule is not None and not warmup_steps:
        return {"scheduler": schedule, "interval": "step"}
    warmup = LambdaLR(optimizer, lambda step: min((step + 1) / max(warmup_steps, 1), 1.0))
    all_steps = warmup if schedule is None else SequentialLR(optimizer, [warmup, schedule], [warmup_steps])
    return {"scheduler": all_steps, "interval": "step"}


def _on_plateau(schedule: ReduceLROnPlateau, warmup_steps: int) -> LRSchedulerConfigType:
    if warmup_steps:
        raise ValueError(f"`warmup_steps` is {warmup_steps}, but `lr_scheduler` follows a metric; pass warmup_steps=0.")
    if not isinstance(schedule, MonitoringReduceLROnPlateau):
        raise ValueError(
            "`lr_scheduler` is torch's ReduceLROnPlateau, which names no metric; pass "
            "lightning.pytorch.cli.ReduceLROnPlateau with its `monitor`."
        )
    return {"scheduler": schedule, "monitor": schedule.monitor, "interval": "epoch"}
