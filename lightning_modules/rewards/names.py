"""Names of rewards, for metrics."""

from __future__ import annotations

import functools
from typing import Any

from lightning_modules.rewards.batch import BatchReward


def reward_name(reward: Any) -> str:
    """Return the name of a function, of the class of a callable object, or of a `BatchReward`."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    if isinstance(reward, BatchReward):
        return reward.name
    return str(getattr(reward, "__name__", type(reward).__name__))


def numbered(names: list[str]) -> list[str]:
    """Return the names, with equal ones numbered, since metrics are logged by name."""
    return [
        name if names.count(name) == 1 else f"{name}_{names[: index + 1].count(name)}"
        for index, name in enumerate(names)
    ]
