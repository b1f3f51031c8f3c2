"""Callbacks that see each rollout, which Lightning's hooks do not pass on."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning import Callback, Trainer

from lightning_modules.data.rollout import Rollout


class RolloutObserver(Callback, ABC):
    """Base class of callbacks that see each rollout, before its first optimizer step.

    Subclass requirements:

    - Implement `on_rollout`. Every rank calls it, with its own completions, so it may gather over ranks. Do not change
      the rollout. A resumed run repeats a rollout of which no step was saved.
    """

    @abstractmethod
    def on_rollout(self, trainer: Trainer, rollout: Rollout) -> None:
        """Observe a rollout; its first optimizer step will be `trainer.global_step + 1`."""


def observe(trainer: Trainer, rollout: Rollout) -> None:
    """Show a rollout to all callbacks that observe rollouts."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    for callback in callbacks:
        if isinstance(callback, RolloutObserver):
            callback.on_rollout(trainer, rollout)
