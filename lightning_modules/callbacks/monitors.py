"""Metrics that callbacks monitor: early stopping and checkpoints of the best step."""

from __future__ import annotations

from collections.abc import Collection

from lightning import Callback, Trainer


def require_monitored(trainer: Trainer, to_come: str | None = None) -> None:
    """Check that every metric that a callback monitors exists, once the first optimizer step has been logged.

    Args:
        trainer: trainer, for its callbacks and their metrics.
        to_come: prefix of metrics that are not measured yet, but will be; none when None.

    Raises:
        ValueError: a callback monitors a metric that no one logs.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    known: Collection[str] = trainer.callback_metrics.keys()
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in known or (to_come and monitor.startswith(to_come)):
            continue
        raise ValueError(
            f"`monitor` of {type(callback).__name__} is {monitor!r}, which this run does not measure; pass one of "
            f"{', '.join(sorted(known))}."
        )
